"""A director's counts as Prometheus metrics (docs/operate/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glb.version import __version__

if TYPE_CHECKING:
    from glb.director.daemon import Director


class DirectorCollector(Collector):
    """Reads the director when Prometheus asks; nothing is counted twice or kept here."""

    def __init__(self, director: Director) -> None:
        self._director = director

    def collect(self) -> Iterable[Metric]:
        director = self._director
        counts = director.counts()
        yield _info(director)
        yield _counter(
            "glb_director_packets", "Frames for a bind, encapsulated", ["table", "engine"], counts.table_frames
        )
        yield _counter("glb_director_bytes", "Bytes received of those frames", ["table", "engine"], counts.table_bytes)
        yield CounterMetricFamily(
            "glb_director_accelerated_packets", "Of the tunnel packets, those made in the kernel", counts.accelerated
        )
        yield _counter(
            "glb_director_encapsulated_packets",
            "Tunnel packets by first hop",
            ["table", "backend", "engine"],
            counts.backends,
        )
        yield _counter("glb_director_drops", "Frames for a VIP dropped, by reason", ["table", "reason"], counts.drops)
        answers = {(result,): counts.answers.get(result, 0) for result in ("limited", "sent")}
        yield _counter("glb_director_too_big_answers", "ICMP answers to packets too big", ["result"], answers)
        lost = {(reason,): frames for reason, frames in counts.lost.items()}
        yield _counter("glb_director_lost", "Frames that no worker could take, by reason", ["reason"], lost)
        yield from self._tables()
        yield from self._reloads()

    def _tables(self) -> Iterable[Metric]:
        status = self._director.status()
        info = GaugeMetricFamily("glb_table_info", "What is forwarded by", labels=["table", "digest"])
        state = GaugeMetricFamily("glb_backend_state", "1 for the state it is in", labels=["table", "backend", "state"])
        healthy = GaugeMetricFamily("glb_backend_healthy", "0 if its health check failed", labels=["table", "backend"])
        reachable = GaugeMetricFamily(
            "glb_backend_reachable", "1 if its next hop is known", labels=["table", "backend"]
        )
        for table in status.tables:
            info.add_metric([table.name, table.digest], 1)
            for backend in table.backends:
                state.add_metric([table.name, backend.address, backend.state], 1)
                healthy.add_metric([table.name, backend.address], 0 if backend.healthy is False else 1)
                reachable.add_metric([table.name, backend.address], 0 if backend.fault else 1)
        return info, state, healthy, reachable

    def _reloads(self) -> Iterable[Metric]:
        reload = self._director.last_reload
        yield GaugeMetricFamily(
            "glb_table_last_reload_success_timestamp_seconds", "When the tables in force were published", reload.good_at
        )
        yield CounterMetricFamily("glb_table_reload_failures", "Table files refused", reload.failures)
        yield GaugeMetricFamily("glb_table_build_duration_seconds", "Time the last rows took to build", reload.took_s)


def _info(director: Director) -> Metric:
    info = GaugeMetricFamily(
        "glb_director_info", "This director", labels=["version", "interface", "engine", "xdp_mode"]
    )
    info.add_metric([__version__, director.interface.name, director.engine, director.xdp_mode], 1)
    return info


def _counter(name: str, text: str, labels: list[str], counted: Mapping[Any, int]) -> Metric:
    """`counted`: by label values, a tuple."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, frames in sorted(counted.items()):
        family.add_metric(values, frames)
    return family


def exposition(director: Director) -> Callable[[], bytes]:
    """A function that gives the metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(DirectorCollector(director))
    return lambda: bytes(generate_latest(registry))
