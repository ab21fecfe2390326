"""glbctl: the command and its groups. A command's module is imported only when it is used, so that each starts fast."""

from __future__ import annotations

import importlib

import click

from glb.errors import GlbError
from glb.version import __version__

# command -> (module, attribute, help in the list of commands)
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "table": ("glb.ctl.table", "table", "Check, show, compare, build and apply forwarding tables."),
    "flow": ("glb.ctl.flow", "flow", "Follow one flow through the tables."),
    "agent": ("glb.ctl.agent", "agent", "The agents on the proxies: engines, flows, counters."),
    "mtu-check": ("glb.ctl.mtu", "mtu_check", "Are all links large enough for the tunnel?"),
    "status": ("glb.ctl.status", "status", "Directors, digests, backends, states, health, flows."),
    "capture": ("glb.ctl.capture", "capture", "Packets of directors into a pcapng file, with their verdicts."),
    "fill": ("glb.ctl.verbs", "fill", "Give a backend new flows (again)."),
    "activate": ("glb.ctl.verbs", "activate", "Say that a filled backend has settled."),
    "drain": ("glb.ctl.verbs", "drain", "Give a backend no new flows; old ones go on."),
    "deactivate": ("glb.ctl.verbs", "deactivate", "Take a drained backend out."),
    "settle": ("glb.ctl.settle", "settle", "Say that displaced flows have ended."),
}


class _LazyGroup(click.Group):
    """Imports a command when it is asked for, and turns our errors into one message and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GlbError as error:
            for line in str(error).splitlines():
                click.echo(f"glbctl: {line}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="glbctl")
def main() -> None:
    """Ask and change a fleet of GLB directors.

    Nouns read (table, flow, agent, status, capture, mtu-check), verbs change (fill, activate, drain, deactivate,
    settle, table apply). Data goes to stdout, talk to stderr. Exit codes: 0 ok, 1 failed, 2 usage, 3 a check found
    problems or a change is not safe.

    \b
    Example:
      glbctl table check tables.json
      glbctl drain web 10.0.0.1 --store tables.json --wait
    """


if __name__ == "__main__":
    main()
