"""The command glb-proxy-agent: run, detach, check."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from glb.errors import GlbError
from glb.version import __version__
from proxy_agent import config as config_file

P = ParamSpec("P")
R = TypeVar("R")

config_option = click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="agent.toml (or .json, .yaml); docs/operate/agent.md lists the keys.",
)


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """A GlbError becomes one message on stderr and its own exit code."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except GlbError as error:
            click.echo(f"glb-proxy-agent: {error}", err=True)
            sys.exit(error.exit_code)

    return wrapper


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="glb-proxy-agent")
def main() -> None:
    """The proxy side of GLB: accepts tunnel packets of its own flows and gives the others a second chance elsewhere."""


@main.command()
@config_option
@reports_errors
def run(path: Path) -> None:
    """Run in the foreground until SIGTERM; SIGHUP reloads vips, allowed_sources, socket_namespaces, mss and hops.

    Example: glb-proxy-agent run --config /etc/glb/agent.toml
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    from proxy_agent import daemon  # imports the netlink and HTTP libraries, which `check` does not need

    daemon.run(path)


@main.command()
@config_option
@reports_errors
def detach(path: Path) -> None:
    """Undo what agents did to this host: program, rules, VIPs they added, sysctls they set. Stop the agent first.

    Example: glb-proxy-agent detach --config /etc/glb/agent.toml
    """
    from proxy_agent import daemon

    for phrase in daemon.detach(config_file.load(path)):
        click.echo(phrase, err=True)
    click.echo("detached")


@main.command()
@config_option
@reports_errors
def check(path: Path) -> None:
    """Check a configuration file: exit 0, or 3 and every problem in it.

    Example: glb-proxy-agent check --config /etc/glb/agent.toml
    """
    for warning in config_file.load(path).warnings():
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{path}: ok")


if __name__ == "__main__":
    main()
