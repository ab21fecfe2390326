"""``glbctl table``: questions about forwarding tables, and GLB's binary file. (`apply`: glb/ctl/apply.py)"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from glb.ctl.diff import print_set_diff, set_diff_json
from glb.ctl.output import (
    Cell,
    Share,
    health_word,
    lenient_option,
    output_option,
    print_columns,
    print_json,
    print_line,
    say,
)
from glb.errors import ConfigError

if TYPE_CHECKING:  # building rows is for the commands that need them
    from glb.table.config import Bind
    from glb.table.fields import Address
    from glb.table.rows import Rows
    from glb.table.shares import Imbalance


class _Group(click.Group):
    """With `apply`, which asks directors: imported when it is wanted, so that the questions start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "apply"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "apply":
            return super().get_command(ctx, cmd_name)
        from glb.ctl.apply import apply

        return apply


@click.group(cls=_Group)
def table() -> None:
    """Check, show, compare, build and apply forwarding tables.

    SRC is a JSON, TOML or YAML file, told apart by suffix, or - for JSON on standard input.

    \b
    Example:
      glbctl table show tables.json
    """


# ---- check


@table.command()
@click.argument("src")
@lenient_option
@output_option
def check(src: str, lenient: bool, output: str) -> None:
    """Name every problem of SRC by its JSON path.

    Exit code 0, or 3 if there is a problem.

    \b
    Example:
      glbctl table check tables.json
    """
    from glb.ctl.source import read_source
    from glb.table.config import parse_tables
    from glb.table.document import format_of

    content = read_source(src)
    try:
        tables = parse_tables(content, source=src, format=format_of(src), lenient=lenient)
    except ConfigError as error:
        if output == "json":
            problems = [{"path": problem.path, "message": problem.message} for problem in error.problems]
            print_json({"source": src, "ok": False, "problems": problems, "warnings": []})
        else:
            print_line(str(error))
        raise SystemExit(error.exit_code) from None
    if output == "json":
        warnings = [{"path": warning.path, "message": warning.message} for warning in tables.warnings]
        print_json({"source": src, "ok": True, "problems": [], "warnings": warnings})
        return
    for warning in tables.warnings:
        say(f"{src}: warning: {warning}")
    n_backends = sum(len(entry.backends) for entry in tables.tables)
    n_binds = sum(len(entry.binds) for entry in tables.tables)
    counted = [_count(len(tables.tables), "table"), _count(n_backends, "backend"), _count(n_binds, "bind")]
    print_line(f"{src}: ok: {', '.join(counted)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# ---- build


@table.command()
@click.argument("src")
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--format", "format_", type=click.Choice(["glbd2"]), default="glbd2", show_default=True)
@lenient_option
def build(src: str, out: str, format_: str, lenient: bool) -> None:
    """Build GitHub GLB's binary table OUT from SRC, byte for byte.

    Rows are by the rule glb2, whatever SRC says: the file is for GLB's own director. OUT is replaced atomically; if
    SRC is refused, an old OUT stays.

    \b
    Example:
      glbctl table build tables.json tables.bin --format glbd2
    """
    import hashlib

    from glb.ctl.source import load_source
    from glb.store.file import replace_file
    from glb.table.glbd2 import departures, write_glbd2

    tables = load_source(src, lenient=lenient)
    content = write_glbd2(tables, source=src)
    for departure in departures(tables):
        say(f"{src}: warning: {departure}")
    replace_file(out, content)
    digest = hashlib.sha256(content).hexdigest()
    print_line(f"{out}: {_count(len(tables.tables), 'table')}, {len(content)} bytes, sha256 {digest}")


# ---- show


class _RowRange(click.ParamType[range]):
    """``0-15`` or ``7``."""

    name = "rows"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        first, dash, last = str(value).partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            self.fail(f"{value!r} is no range of rows such as 0-15 or 7", param, ctx)
        result = range(int(first), int(last or first) + 1)
        if not result:
            self.fail(f"{value!r} is empty: its first row is above its last", param, ctx)
        return result


class _Shown:
    """A table with its rows, wherever they come from."""

    def __init__(
        self,
        name: str,
        hash_key: bytes,
        binds: Sequence[Bind],
        backends: Sequence[tuple[Address, str, bool | None]],
        rows: Rows,
        imbalance: Imbalance,
    ) -> None:
        from glb.table.digest import forwarded_digest

        self.name = name
        self.backends = backends
        self.rows = rows
        self.imbalance = imbalance
        addresses = [address for address, _, _ in backends]
        self.digest = forwarded_digest(hash_key, binds, rows.indexes, rows.stride, addresses)

    def hops(self, row: int) -> list[str]:
        return [str(self.backends[index][0]) for index in self.rows.row(row)]

    def shares(self) -> list[list[float]]:
        """Per backend, its part of the rows as each hop."""
        from glb.table.shares import column_counts

        columns = [column_counts(self.rows, column) for column in range(self.rows.hops)]
        return [[column[index] / self.rows.n_rows for column in columns] for index in range(len(self.backends))]


@table.command()
@click.argument("src")
@click.option("--rows", "wanted", type=_RowRange(), help="Show these rows, such as 0-15 or 7.")
@lenient_option
@output_option
def show(src: str, wanted: range | None, lenient: bool, output: str) -> None:
    """Show each backend's share of the rows per hop, or some rows.

    SRC may be GLB's binary file, too. With -o json and without --rows: all rows.

    \b
    Example:
      glbctl table show tables.json --rows 0-15 -o json
    """
    tables = _load_shown(src, lenient)
    for entry in tables:
        if wanted is not None and wanted[-1] >= entry.rows.n_rows:
            message = f"row {wanted[-1]} is none of {entry.name}'s; its rows are 0-{entry.rows.n_rows - 1}"
            raise click.BadParameter(message, param_hint="--rows")
    if output == "json":
        print_line(json.dumps({"tables": [_shown_json(entry, wanted) for entry in tables]}))
        return
    for entry in tables:
        if wanted is None:
            _print_shares(entry)
        else:
            headers = ["row", "primary", *(f"hop {hop}" for hop in range(2, entry.rows.hops + 1))]
            rows: list[list[Cell]] = [[row, *entry.hops(row)] for row in wanted]
            print_columns(entry.name, headers, rows)


def _load_shown(src: str, lenient: bool) -> list[_Shown]:
    from glb.ctl.source import read_source, tables_of
    from glb.table.glbd2 import is_glbd2, read_glbd2
    from glb.table.rows import RowBuilder
    from glb.table.shares import column_counts, imbalance, imbalance_of

    content = read_source(src)
    if is_glbd2(content):
        return [
            _Shown(
                f"table-{index}",
                entry.hash_key,
                entry.binds,
                [(backend.address, backend.state, backend.healthy) for backend in entry.backends],
                entry.rows,
                imbalance_of(entry.rows, dict.fromkeys(column_counts(entry.rows, 0), 1)),
            )
            for index, entry in enumerate(read_glbd2(content, source=src))
        ]
    tables = tables_of(src, content, lenient=lenient)
    return [
        _Shown(
            entry.name,
            entry.hash_key,
            entry.binds,
            [(backend.address, backend.state.value, backend.healthy) for backend in entry.backends],
            rows,
            imbalance(rows, entry),
        )
        for entry, rows in zip(tables.tables, RowBuilder().build_all(tables), strict=True)
    ]


def _shown_json(entry: _Shown, wanted: range | None) -> dict[str, object]:
    return {
        "name": entry.name,
        "digest": entry.digest,
        "n_rows": entry.rows.n_rows,
        "imbalance": {
            "address": str(entry.backends[entry.imbalance.index][0]),
            "share": entry.imbalance.share,
            "due": entry.imbalance.due,
            "above": entry.imbalance.above,
            "expected_above": entry.imbalance.expected_above,
        },
        "backends": [
            {"address": str(address), "state": state, "healthy": healthy, "shares": shares}
            for (address, state, healthy), shares in zip(entry.backends, entry.shares(), strict=True)
        ],
        "rows": [{"row": row, "hops": entry.hops(row)} for row in wanted or range(entry.rows.n_rows)],
    }


def _print_shares(entry: _Shown) -> None:
    headers = ["backend", "state", "health", "primary", *(f"hop {hop}" for hop in range(2, entry.rows.hops + 1))]
    shares = entry.shares()
    rows: list[list[Cell]] = [
        [str(address), state, health_word(healthy), *map(Share, backend_shares)]
        for (address, state, healthy), backend_shares in zip(entry.backends, shares, strict=True)
    ]
    print_columns(f"{entry.name}  {entry.digest}", headers, rows)
    found = entry.imbalance
    who = f"{entry.backends[found.index][0]} with {found.share:.2%} for {found.due:.2%}: {found.above:+.1%}"
    print_line(
        f"{entry.name}: most above its due: {who} (two of three such tables: {found.expected_above:+.1%} or less)"
    )


# ---- digest


@table.command()
@click.argument("src")
@lenient_option
@output_option
def digest(src: str, lenient: bool, output: str) -> None:
    """Print one digest per table of what is forwarded by.

    Equal on every machine, and for every order of keys and backends in the file.

    \b
    Example:
      glbctl table digest tables.json
    """
    from glb.ctl.source import load_source
    from glb.table.digest import table_digest
    from glb.table.rows import RowBuilder

    tables = load_source(src, lenient=lenient)
    digests = [
        (entry.name, table_digest(entry, rows))
        for entry, rows in zip(tables.tables, RowBuilder().build_all(tables), strict=True)
    ]
    if output == "json":
        print_json({"tables": [{"name": name, "digest": value} for name, value in digests]})
        return
    for _, value in digests:
        print_line(value)


# ---- diff


@table.command()
@click.argument("old")
@click.argument("new")
@lenient_option
@output_option
def diff(old: str, new: str, lenient: bool, output: str) -> None:
    """Say what going from OLD to NEW would do: rows moved, rows at risk, shares before and after.

    A row moves if it gets another primary. It is at risk if a backend that may hold flows of it is no hop of it any
    more, or comes behind an unhealthy one. Who may is told by the history of OLD if it is a store (glbctl settle
    --help), else by the states in OLD. Tables are the same if their names are.

    \b
    Example:
      glbctl table diff tables.json proposed.json
    """
    from glb.ctl.source import load_source, pasts_of
    from glb.table.diff import diff_sets

    if old == new == "-":
        raise click.UsageError("only one of OLD and NEW can be standard input")
    before = load_source(old, lenient=lenient)
    result = diff_sets(before, load_source(new, lenient=lenient), past=pasts_of(old, before))
    if output == "json":
        print_json(set_diff_json(result))
    else:
        print_set_diff(result)
