"""`glb-director`: run the daemon, or replay a capture through the packet path."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

import click

from glb.director.config import Config, parse_config
from glb.errors import GlbError
from glb.store.file import load_tables, read_bytes
from glb.table.document import format_of
from glb.version import __version__


def load_config(path: str) -> Config:
    """A configuration file by its suffix; GLB's director.conf is JSON."""
    format = "json" if path.endswith(".conf") else format_of(path)
    return parse_config(read_bytes(path), source=path, format=format)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glb-director")
def cli() -> None:
    """The director: encapsulates packets for virtual IPs and sends them to the proxies."""


@cli.command()
@click.option("--config", "path", required=True, type=click.Path(), help="director.toml, or GLB's director.conf")
def run(path: str) -> None:
    """Forward packets until SIGTERM; SIGHUP reloads the tables.

    Example: glb-director run --config /etc/glb/director.toml
    """
    from glb.director.daemon import Director

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    config = load_config(path)
    for warning in config.warnings:
        logging.getLogger(__name__).warning("%s", warning)
    asyncio.run(_run(Director, config, path))


async def _run(director: type, config: Config, path: str) -> None:
    await director(config, path).run()


@cli.command()
@click.option("--config", "path", required=True, type=click.Path(), help="director.toml, or GLB's director.conf")
def detach(path: str) -> None:
    """Remove the XDP program and counters that a director left on the interface, so that forwarding ends.

    Example: glb-director detach --config /etc/glb/director.toml
    """
    from glb import pin
    from glb.director.interface import read_interface

    config = load_config(path)
    if config.interface is None:
        raise click.UsageError("the configuration names no interface")
    interface = asyncio.run(read_interface(config.interface))
    if config.pin_dir and pin.remove(Path(config.pin_dir), interface.name):
        click.echo(f"glb-director: detached from {interface.name}")
    else:
        click.echo(f"glb-director: nothing of a director is on {interface.name}")


@cli.command()
@click.option("--config", "path", required=True, type=click.Path(), help="director.toml, or GLB's director.conf")
@click.option("--table", "table", type=click.Path(), help="forwarding table; the configuration's where left out")
@click.option("--mtu", type=click.IntRange(68, 65535), help="of the path to the proxies; no limit where left out")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def replay(path: str, table: str | None, mtu: int | None, source: Path, target: Path) -> None:
    """Encapsulate the frames of SOURCE (pcap or pcapng) into TARGET (pcap), offline; prints counts as JSON.

    With --mtu, packets that are too big for the tunnel are answered, as a director does; the answers are in TARGET too.

    Example: glb-director replay --config director.toml --table tables.json in.pcap out.pcap
    """
    from glb.director.replay import replay as replay_file

    config = load_config(path)
    for warning in config.warnings:
        click.echo(f"glb-director: {warning}", err=True)
    where = table or config.store
    if where is None:
        raise click.UsageError("no forwarding table: give --table, or set table in the configuration")
    counts = replay_file(config, load_tables(where), source, target, mtu)
    click.echo(json.dumps(counts))


def main() -> None:
    """Entry point: every GlbError is one message on stderr and its exit code."""
    try:
        cli(standalone_mode=True)
    except GlbError as error:
        click.echo("\n".join(f"glb-director: {line}" for line in str(error).splitlines()), err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
