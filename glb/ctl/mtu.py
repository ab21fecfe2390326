"""``glbctl mtu-check``: tunnel packets of the real size over every link, and which links are too small for them."""

from __future__ import annotations

from collections.abc import Iterable

import click

from glb.ctl.agent import AgentStatus, ask_status
from glb.ctl.change import opened_store, store_option
from glb.ctl.fleet import Endpoint, UnreachableError, agent_option, ask_all
from glb.ctl.links import Link, links_of
from glb.ctl.output import Cell, output_option, print_columns, print_json, say
from glb.ctl.probe_socket import ProbeSocket
from glb.ctl.probing import TRIES, Probing
from glb.ctl.source import load_source
from glb.wire.gue import GUE_PORT

_EXIT_NO_ANSWER = 1
_EXIT_TOO_SMALL = 3
_PACKETS_PER_S = 2000.0

OK, TOO_SMALL, CLAMPED, NO_ANSWER, NOT_TRIED = "ok", "too small", "clamped", "no answer", "not tried"


@click.command("mtu-check")
@click.argument("tables", required=False)
@store_option
@click.option("--client-mtu", type=click.IntRange(576, 9000), default=1500, show_default=True, help="Clients' packets.")
@click.option("--hops", type=click.IntRange(1, 31), help="In one tunnel packet, if not as the tables say.")
@click.option("--all-links", is_flag=True, help="From every proxy to every other, not only in a ring.")
@click.option("--gue-port", type=click.IntRange(1, 65535), default=GUE_PORT, show_default=True, help="Of the agents.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.01, 60),
    default=0.5,
    show_default=True,
    help=f"Seconds to wait for an answer, {TRIES} times.",
)
@agent_option
@output_option
def mtu_check(
    tables: str | None,
    store_url: str | None,
    client_mtu: int,
    hops: int | None,
    all_links: bool,
    gue_port: int,
    timeout_s: float,
    agents: tuple[Endpoint, ...],
    output: str,
) -> None:
    """Send tunnel packets of the real size to every proxy, and say which links are too small.

    Run it as root on a director, or on another host in the agents' allowed_sources. Needed is what a client's largest
    packet takes with the tables' hops. With --agent, a link that is too small counts as clamped where its proxy tells
    clients an MSS that fits. Exit code 1 if a proxy does not answer, 3 if a link is too small.

    \b
    Example:
      glbctl mtu-check /etc/glb/tables.json
    """
    loaded = opened_store(store_url).load().tables if tables is None else load_source(tables, lenient=False)
    links = links_of(loaded, client_mtu, hops, every_pair=all_links)
    with ProbeSocket(_PACKETS_PER_S) as sockets:
        Probing(sockets, gue_port, timeout_s).run(links)
    clamps = _clamps(agents)
    verdicts = {link: _verdict(link, clamps) for link in links}
    if output == "json":
        print_json({"client_mtu": client_mtu, "links": [_json(*each) for each in verdicts.items()]})
    else:
        _print(verdicts)
    for line in _explanations(verdicts):
        say(f"glbctl: {line}")
    if NO_ANSWER in verdicts.values():
        raise SystemExit(_EXIT_NO_ANSWER)
    if TOO_SMALL in verdicts.values():
        raise SystemExit(_EXIT_TOO_SMALL)


# ---- judging


def _clamps(agents: tuple[Endpoint, ...]) -> dict[str, AgentStatus]:
    """By proxy what its agent says, of those that are given and answer."""
    answers = zip(agents, ask_all(agents, ask_status), strict=True)
    found = {}
    for endpoint, answer in answers:
        if isinstance(answer, UnreachableError):
            say(f"glbctl: {answer}")
        else:
            found[str(endpoint.address)] = answer
    return found


def _verdict(link: Link, clamps: dict[str, AgentStatus]) -> str:
    if link.path_mtu is None:
        return NO_ANSWER if link.search.tried else NOT_TRIED
    if link.path_mtu >= link.needed:
        return OK
    if link.search.fits:
        return NOT_TRIED  # what is larger does not come as far as this link
    agent = clamps.get(str(link.to))
    return CLAMPED if agent is not None and _is_clamped(link, agent) else TOO_SMALL


def _is_clamped(link: Link, agent: AgentStatus) -> bool:
    """Whether clients of the proxy's VIPs are told an MSS that fits the link."""
    fitting, in_force = link.mss(), agent.mss
    if fitting is None or in_force is None:
        return False
    families = {6 if ":" in vip else 4 for vip in agent.vips}
    return all(0 < in_force[f"ipv{family}"] <= fitting[family] for family in families)


def _json(link: Link, verdict: str) -> dict[str, object]:
    mss = link.mss()
    return {
        "from": None if link.via is None else str(link.via),
        "to": str(link.to),
        "hops": link.hops,
        "needed": link.needed,
        "path_mtu": link.path_mtu,
        "mss": None if mss is None else {"ipv4": mss[4], "ipv6": mss[6]},
        "verdict": verdict,
        "routers": [{"address": address, "mtu": mtu} for address, mtu in link.routers.items()],
    }


def _print(verdicts: dict[Link, str]) -> None:
    rows: list[list[Cell]] = []
    for link, verdict in verdicts.items():
        mss = link.mss()
        rows.append(
            [
                "this host" if link.via is None else str(link.via),
                str(link.to),
                "-" if link.path_mtu is None else f"{link.path_mtu}" + ("+" if link.search.fits else ""),
                link.needed,
                "-" if mss is None or verdict in (OK, NOT_TRIED) else f"{mss[4]} / {mss[6]}",
                verdict,
            ]
        )
    print_columns("links", ["from", "to", "path MTU", "needed", "mss (IPv4 / IPv6)", "verdict"], rows)


def _explanations(verdicts: dict[Link, str]) -> Iterable[str]:
    for link, verdict in verdicts.items():
        way = f"{'this host' if link.via is None else link.via} -> {link.to}"
        for address, mtu in link.routers.items():
            yield f"{way}: {address} says that the next link carries {mtu} bytes"
        if link.refusal is not None:
            yield f"{way}: this host did not send: {link.refusal}"
        if verdict == NO_ANSWER and link.via is None:
            yield (
                f"{way}: no answer to small packets either: does the agent run there, is this host in its "
                f"allowed_sources, is {link.vip} in its vips, and does no firewall drop the tunnel port or ICMP echo?"
            )
        elif verdict == NO_ANSWER:
            yield (
                f"{way}: nothing that should have bounced there was answered: is {link.via} in the allowed_sources of "
                f"{link.to}, does {link.via} forward UDP to the tunnel port, and does no firewall at {link.to} "
                "drop TCP segments of unknown flows, or their resets?"
            )
        elif verdict == TOO_SMALL:
            yield f"{way}: carries {link.path_mtu} bytes, {link.needed} are needed: raise its MTU, or clamp the MSS"
