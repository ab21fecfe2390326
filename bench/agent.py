"""The figures of bench/agent_verdicts.py, in the form of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench import agent_verdicts
from bench.errors import BenchError
from bench.measure import Session, significant

SUMMARY = "the proxy agent's verdict loop, against one that accepts everything"

_BASELINE = "accept_everything"
_BASELINE_IS = "the same loop accepting every packet, without a look at it or a socket look-up"
_METHOD = (
    "netfilter engine: NFQUEUE in batches, verdicts a second of the loop's CPU time, local stack included; tunnel "
    "packets of 1,000 flows from another core"
)


def _measured(rounds: int) -> dict[str, dict[str, Any]]:
    try:
        return {str(each["name"]): dict(each) for each in agent_verdicts.run(rounds)}
    except RuntimeError as error:
        raise BenchError(str(error)) from error


def run(session: Session) -> Iterator[dict[str, Any]]:
    rounds = 1 if session.quick else agent_verdicts.ROUNDS
    with session.talk.steps("agent", 1) as step:
        measured = _measured(rounds)
        step()
    key = "verdicts_per_cpu_second"
    baselines = {name: result[key] for name, result in measured.items() if name.startswith(_BASELINE)}
    for name, result in measured.items():
        if name in baselines:
            continue
        baseline = baselines[result["baseline"]]
        yield {
            "figure": f"agent/{name}",
            "value": significant(result.pop(key)),
            "unit": "verdicts/s",
            "better": "higher",
            "baseline": significant(baseline),
            "ratio": result["ratio"],
            "alternations": rounds,
            "frame_bytes": [94],
            "method": _METHOD,
            "baseline_is": _BASELINE_IS,
            "not_included": "the director, the network card, the application",
            **{extra: value for extra, value in result.items() if extra not in ("bench", "name", "ratio", "baseline")},
        }
