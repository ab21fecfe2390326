"""An interface's XDP hook, which takes one program: attached, or refused with the name of the one that is there.

The director and the agent use it.
"""

from __future__ import annotations

import logging

from glb import _bpf
from glb.errors import DeviceError

log = logging.getLogger(__name__)

_DIRECTOR = (
    "a director's",
    "end that director, or run `glb-director detach` with its configuration (its pin_dir may be another)",
)
# Programs by name, of which the kernel keeps 15 characters: whose they are, and how they are removed.
_OWNERS = {
    "glb_director": _DIRECTOR,
    "glb_capturing": _DIRECTOR,
    "glb_second_chan": (
        "a proxy agent's",
        "end that agent, or run `glb-proxy-agent detach` with its configuration (its pin_dir may be another)",
    ),
    "xdp_dispatcher": (
        "libxdp's dispatcher, for programs of others",
        "`xdp-loader status {interface}` lists them, `xdp-loader unload {interface} --all` removes them",
    ),
}
_OTHERS = (
    "somebody else's",
    "`bpftool prog show id {id}` tells more; `ip link set dev {interface} xdp off` removes it, "
    "or the end of the program that holds its link",
)


def attach(program: int, interface: str, ifindex: int) -> int:
    """Attach a program by a link, and return its file descriptor: native mode where the driver has it, else generic.

    DeviceError where another program is attached, in whatever mode: there is no place beside it.
    """
    try:
        return _bpf.attach_xdp(program, ifindex)
    except DeviceError as error:
        other, mode = _bpf.attached_xdp(ifindex)
        if other:
            raise DeviceError(refusal(interface, other, mode)) from error
        log.warning("native XDP refused on %s (%s); trying generic mode", interface, error)
        return _bpf.attach_xdp(program, ifindex, generic=True)


def refusal(interface: str, program_id: int, mode: str) -> str:
    """Why nothing can be attached, by whom, and what to do."""
    name = _bpf.program_name(program_id)
    whose, advice = _OWNERS.get(name, _OTHERS)
    return (
        f"{interface} has another XDP program already, in {mode} mode: {name or 'one without a name'} "
        f"(id {program_id}), {whose}, and takes one only; {advice.format(interface=interface, id=program_id)}"
    )
