"""``python -m lab``: the lab and the demo."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from glb.errors import GlbError
from lab import demo, picture, plan, site
from lab.errors import LabError
from lab.fleet import Fleet, glbctl_environment
from lab.program import enter, environment
from lab.screen import Screen
from lab.site import BIN, Lab

_PIPE_COLUMNS = 110
_HOSTS = click.Choice(plan.HOST_NAMES)


class _Group(click.Group):
    """Reports our own errors as one message, with their exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GlbError as error:
            click.echo("\n".join([f"lab: {error}", *getattr(error, "__notes__", [])]), err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A client, a router, directors and proxies in network namespaces of this machine. Needs root."""


@main.command()
@click.option("--bare", is_flag=True, help="Only the hosts, the router and nginx, without GLB.")
def up(bare: bool) -> None:
    """Build the lab and keep it until Ctrl-C.

    Example: python -m lab up
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Lab() as lab:
        fleet = Fleet(lab)
        if not bare:
            fleet.start()
        click.echo(picture.draw())
        click.echo(picture.invitation(lab.prefix))
        click.echo(f"Logs and configurations: {lab.home}. Ctrl-C removes everything.")
        running = list(lab.programs)
        while not ended.wait(1.0):
            for program in [each for each in running if not each.running]:
                running.remove(program)
                click.echo(f"lab: ended: {program.last_words()}", err=True)
        click.echo("removing the lab", err=True)


@main.command(name="demo")
def run_demo() -> None:
    """Drain, fill, kill and add under load, count what broke; exit 1 if anything did over GLB.

    In the environment, ENGINE= (of the agents) chooses other than "auto", DATAPATH= (of the directors) other than
    "xdp", and HOPS= other than 3 hops.

    Example: python -m lab demo
    """
    _watch(demo.run)


@main.command()
@click.option("--syns-per-s", default=0.0, metavar="N", help="SYNs a second; as many as it goes otherwise.")
def flood(syns_per_s: float) -> None:
    """Flood the VIPs with SYNs from random addresses, with downloads on their way and a drain; exit 1 if one broke.

    ENGINE= and DATAPATH= as for the demo.

    Example: python -m lab flood
    """
    _watch(lambda screen: demo.run_flood(screen, syns_per_s))


def _watch(scenario: Callable[[Screen], bool]) -> NoReturn:
    """Run it on this terminal or pipe, and exit by whether it was good."""
    try:
        good = scenario(Screen(Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS)))
    except KeyboardInterrupt:
        raise LabError("interrupted; everything was removed") from None
    sys.exit(not good)


@main.command()
def down() -> None:
    """Remove every lab that stands, and what is left of any.

    Example: python -m lab down
    """
    homes = site.running()
    for home in homes:
        site.remove(home)
        click.echo(f"removed {home.name}")
    if not homes:
        click.echo("no lab stands")


@main.command(name="picture")
def show_picture() -> None:
    """Draw the lab.

    Example: python -m lab picture
    """
    click.echo(picture.draw())


@main.command(name="enter")
@click.argument("host", type=_HOSTS)
@click.option("--lab", "prefix", help="Which lab, if several stand; the newest otherwise.")
def enter_host(host: str, prefix: str | None) -> None:
    """A shell on a host of the lab that stands.

    Example: python -m lab enter client
    """
    home = _standing(prefix)
    shell = ["bash", "--norc"] if Path("/bin/bash").exists() else ["sh"]
    _become(home, host, shell, PS1=f"{home.name}-{host}# ")


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("host", type=_HOSTS)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--lab", "prefix", help="Which lab, if several stand; the newest otherwise.")
def exec(host: str, command: tuple[str, ...], prefix: str | None) -> None:
    """Run one command on a host of the lab that stands.

    Example: python -m lab exec client curl -s http://203.0.113.10/
    """
    _become(_standing(prefix), host, list(command))


def _standing(prefix: str | None) -> Path:
    homes = [home for home in site.running() if prefix in (None, home.name)]
    if not homes:
        raise LabError(f"no lab {prefix or ''} stands: start one with `make lab`".replace("  ", " "))
    return homes[-1]


def _become(home: Path, host: str, command: list[str], **more: str) -> None:
    inherited = environment()
    path = os.pathsep.join([str(home / host / "bin"), str(BIN), inherited["PATH"]])
    argv = enter(f"{home.name}-{host}", command)
    sys.stdout.flush()
    os.execvpe(argv[0], argv, inherited | glbctl_environment(home) | more | {"PATH": path})


if __name__ == "__main__":
    main(prog_name="python -m lab")
