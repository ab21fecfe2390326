"""``python -m bench``: run the benchmarks; one JSON line per figure on stdout, talk on stderr."""

from __future__ import annotations

import importlib
import json
import sys

import click

from bench.measure import Session, available_cores
from bench.talk import Talk
from glb.errors import GlbError

# name -> module; each has SUMMARY and run(session), an iterable of figures.
_BENCHMARKS = {
    "memory": "bench.memory",
    "tables": "bench.tables",
    "live": "bench.live",
    "xdp": "bench.xdp",
    "flat": "bench.flat",
    "memory-flat": "bench.memory_flat",
    "reload": "bench.reload",
    "capture": "bench.capture",
    "agent": "bench.agent",
    "agent-xdp": "bench.agent_xdp",
    "stream": "bench.stream",
    "flows": "bench.flows",
    "engines": "bench.table_engines",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "only_list", is_flag=True, help="Name the benchmarks and stop.")
@click.option("--quick", is_flag=True, help="Two alternations and little work: shows that it runs, not how fast.")
def main(names: tuple[str, ...], only_list: bool, quick: bool) -> None:
    """Measure, beside a baseline of the same run; all benchmarks, or those named.

    Example: python -m bench memory tables
    """
    talk = Talk()
    benchmarks = {name: importlib.import_module(module) for name, module in _BENCHMARKS.items()}
    if only_list:
        for name, module in benchmarks.items():
            click.echo(f"{name:<13}{module.SUMMARY}")
        return
    unknown = [name for name in names if name not in benchmarks]
    if unknown:
        raise click.UsageError(f"no benchmark {', '.join(unknown)}; there are: {', '.join(benchmarks)}")
    cores = available_cores()
    if cores.load == cores.work:
        talk.say("bench: only one core may be used; the live figures share it with the load")
    session = Session(quick, cores, talk)
    failed = False
    for name in names or benchmarks:
        try:
            for figure in benchmarks[name].run(session):
                click.echo(json.dumps(figure))
                talk.figure(figure)
        except GlbError as error:
            # The others can still be measured.
            talk.say(f"bench: {name}: {error}")
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(prog_name="python -m bench")
