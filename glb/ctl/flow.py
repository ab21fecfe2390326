"""``glbctl flow``: one flow's way through the tables."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import click

from glb.ctl.output import Cell, health_word, lenient_option, output_option, print_columns, print_json, print_line

if TYPE_CHECKING:
    from glb.ctl.tunnel import FrontField
    from glb.table.explain import Choice, Explanation, Flow
    from glb.table.fields import Address

_HASH_FIELDS = ("src_addr", "dst_addr", "src_port", "dst_port")
_PROTOCOLS = {"tcp": (6, 6), "udp": (17, 17), "icmp": (1, 58)}  # by IP version 4, 6
_MAX_CANDIDATES_PRINTED = 16
_UNKNOWN_SOURCE = ipaddress.IPv4Address(0)  # of the tunnel packet, where --outbound-src-ip is not given
_MAX_INNER_BYTES = 65000


class _AddressParam(click.ParamType["Address"]):
    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        try:
            return ipaddress.ip_address(str(value))
        except ValueError:
            self.fail(f"{value!r} is no IPv4 or IPv6 address", param, ctx)


class _FieldsParam(click.ParamType[tuple[str, ...]]):
    """``src_addr,src_port``"""

    name = "fields"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(",") if part.strip())
        for name in names:
            if name not in _HASH_FIELDS:
                self.fail(f"{name!r} is no hash field; they are {', '.join(_HASH_FIELDS)}", param, ctx)
        if not names:
            self.fail("at least one field must be hashed", param, ctx)
        return names


@click.group()
def flow() -> None:
    """Follow one flow through the tables.

    \b
    Example:
      glbctl flow explain tables.json --src 198.51.100.7 --dst 203.0.113.10 --sport 40000 --dport 80
    """


_PORT = click.IntRange(0, 65535)


@flow.command()
@click.argument("src_file", metavar="SRC")
@click.option("--src", "source", type=_AddressParam(), required=True, help="The client's address.")
@click.option("--dst", "destination", type=_AddressParam(), required=True, help="The virtual IP.")
@click.option(
    "--proto", type=click.Choice(list(_PROTOCOLS)), default="tcp", show_default=True, help="icmp: an echo request."
)
@click.option("--sport", type=_PORT, default=0, help="The client's port.")
@click.option("--dport", type=_PORT, default=0, help="The destination port.")
@click.option(
    "--hash-fields", type=_FieldsParam(), default=("src_addr",), help="As in director.toml.  [default: src_addr]"
)
@click.option("--alt-hash-fields", type=_FieldsParam(), default=(), help="As in director.toml.  [default: none]")
@click.option(
    "--outbound-src-ip", "tunnel_source", type=_AddressParam(), help="As in director.toml.  [default: 0.0.0.0]"
)
@click.option(
    "--length",
    "inner_bytes",
    type=click.IntRange(20, _MAX_INNER_BYTES),
    help="Bytes of the packet from its IP header on.  [default: the least]",
)
@lenient_option
@output_option
def explain(
    src_file: str,
    source: Address,
    destination: Address,
    proto: str,
    sport: int,
    dport: int,
    hash_fields: tuple[str, ...],
    alt_hash_fields: tuple[str, ...],
    tunnel_source: Address | None,
    inner_bytes: int | None,
    lenient: bool,
    output: str,
) -> None:
    """Say what is hashed of a packet, its row, its hops and why they are, and what is put in front of it.

    \b
    Example:
      glbctl flow explain tables.json --src 198.51.100.7 --dst 203.0.113.10 --proto tcp --sport 40000 --dport 80 -o json
    """
    from glb.ctl.source import load_source
    from glb.ctl.tunnel import front_fields, front_of, shortest_inner
    from glb.table.explain import Flow, explain_flow

    if source.version != destination.version:
        raise click.UsageError(f"--src {source} and --dst {destination} are of different IP versions")
    if proto == "icmp" and (sport or dport):
        raise click.UsageError("an ICMP echo request has no ports")
    if isinstance(tunnel_source, ipaddress.IPv6Address):
        raise click.UsageError(f"--outbound-src-ip {tunnel_source}: the outer header is IPv4")
    tables = load_source(src_file, lenient=lenient)
    packet = Flow(source, destination, _PROTOCOLS[proto][source.version == 6], sport, dport)
    found = explain_flow(tables, packet, hash_fields=hash_fields, alt_hash_fields=alt_hash_fields)
    if found is None:
        if output == "json":
            print_json({"verdict": "host", "reason": "no bind is for it"})
        else:
            print_line("no bind is for it: the packet goes to the director's own stack, untouched")
        return
    length = shortest_inner(packet) if inner_bytes is None else inner_bytes
    front = front_of(found, packet, tunnel_source or _UNKNOWN_SOURCE, length)
    fields = [] if front is None else front_fields(front, length)
    if output == "json":
        print_json(_explanation_json(found, packet, fields))
    else:
        _print_explanation(found, packet, fields)


def _choice_json(choice: Choice, flow: Flow) -> dict[str, object]:
    from glb.ctl.tunnel import hashed_fields

    return {
        "hash_fields": list(choice.fields),
        "hashed": [
            {"field": name, "value": value, "bytes": found.hex()}
            for name, value, found in hashed_fields(flow, choice.fields)
        ],
        "hash_input": choice.hash_input.hex(),
        "hash": f"{choice.hash:016x}",
        "row": choice.row,
        "candidates": [
            {
                "address": str(candidate.address),
                "state": candidate.state.value,
                "healthy": candidate.healthy,
                "zone": candidate.zone,
                "weight": candidate.weight,
                "hash": f"{candidate.rank:016x}",
                "score": candidate.score,
            }
            for candidate in choice.candidates
        ],
    }


def _explanation_json(found: Explanation, flow: Flow, fields: list[FrontField]) -> dict[str, object]:
    from glb.table.change import bind_text

    return {
        "verdict": "forward",
        "table": found.table.name,
        "row_rule": found.table.row_rule,
        "bind": bind_text(found.bind),
        **_choice_json(found.choice, flow),
        "alternative": _choice_json(found.alternative, flow) if found.alternative else None,
        "hops": [str(hop.address) for hop in found.hops],
        "why": [hop.reason for hop in found.hops],
        "udp_source_port": found.source_port,
        "gue_header": found.gue_header.hex(),
        "front": b"".join(field.bytes for field in fields).hex() or None,
        "front_fields": [
            {"offset": field.offset, "bytes": field.bytes.hex(), "field": field.name, "value": field.value}
            for field in fields
        ],
    }


def _print_explanation(found: Explanation, flow: Flow, fields: list[FrontField]) -> None:
    from glb.table.change import bind_text

    print_line(f"table      {found.table.name} (rule {found.table.row_rule})")
    print_line(f"bind       {bind_text(found.bind)}")
    _print_choice(found.choice, flow)
    if found.alternative is not None:
        print_line("")
        print_line("alternative (alt_hash_fields)")
        _print_choice(found.alternative, flow)
    print_columns(
        "hops", ["hop", "address", "why"], [[at, str(hop.address), hop.reason] for at, hop in enumerate(found.hops)]
    )
    if not fields:
        print_line("no tunnel packet can be sent: a hop has no IPv4 address")
        return
    print_columns(
        f"in front of the packet: {b''.join(field.bytes for field in fields).hex()}",
        ["offset", "bytes", "field", "value"],
        [[field.offset, field.bytes.hex(), field.name, field.value] for field in fields],
    )
    if found.source_port is None:
        print_line("the UDP source port depends on each packet: 32768 and 15 bits")


def _print_choice(choice: Choice, flow: Flow) -> None:
    from glb.ctl.tunnel import hashed_fields

    print_columns(
        "hashed",
        ["field", "value", "bytes"],
        [[name, value, found.hex()] for name, value, found in hashed_fields(flow, choice.fields)],
    )
    print_line(f"hash       {choice.hash:016x}")
    print_line(f"row        {choice.row}")
    shown = choice.candidates[:_MAX_CANDIDATES_PRINTED]
    rows: list[list[Cell]] = [
        [place, str(candidate.address), candidate.state.value, health_word(candidate.healthy), f"{candidate.rank:016x}"]
        for place, candidate in enumerate(shown, 1)
    ]
    columns = ["place", "address", "state", "health", "hash"]
    # Only what has a part in the order, or in the choice of the second hop.
    if any(candidate.score is not None for candidate in shown):
        columns += ["weight", "score"]
        for row, candidate in zip(rows, shown, strict=True):
            row += [candidate.weight, "" if candidate.score is None else str(candidate.score)]
    if any(candidate.zone is not None for candidate in shown):
        columns.append("zone")
        for row, candidate in zip(rows, shown, strict=True):
            row.append(candidate.zone or "")
    print_columns("rendezvous order", columns, rows)
    if len(choice.candidates) > _MAX_CANDIDATES_PRINTED:
        print_line(f"... and {len(choice.candidates) - _MAX_CANDIDATES_PRINTED} more (-o json shows all)")
