"""The agent's numbers: as Prometheus text and as the JSON of /status. Reading them changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from glb.version import __version__
from proxy_agent.decide import REASONS, Action

if TYPE_CHECKING:
    from proxy_agent.flows import BindFlows

QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")


@dataclass(frozen=True)
class Reading:
    """All numbers at one moment."""

    engine: str
    counters: dict[str, int]  # packets by reason
    bounced_by_hop: dict[int, int]  # by position in the GUE header's list, from 0
    internals: dict[str, int]  # of the verdict loop
    flows: dict[str, int]  # live flows by VIP
    binds: tuple[BindFlows, ...] = ()  # the same by port
    flows_counted_by: str = "bpf"
    flows_problems: tuple[str, ...] = ()  # what was not counted, and why
    queue: dict[str, int] = field(default_factory=dict)  # of the kernel's queue
    mss: dict[str, int] = field(default_factory=dict)  # by ipv4, ipv6; 0: not clamped
    mss_problem: str | None = None  # why it is not, if it should be
    mode: str | None = None  # of the xdp engine: native, generic, offload
    reload_failures: int = 0
    loaded_at: float = 0.0  # Unix time of the configuration in force
    cookie_judge: str = "kernel"  # of engine.Engine

    def status(self) -> dict[str, object]:
        """The JSON of /status."""
        return {
            "version": __version__,
            "engine": self.engine,
            "mode": self.mode,
            "vips": list(self.flows),
            "flows": self.flows,
            "flows_total": sum(self.flows.values()),
            "binds": [
                {"address": bind.address, "protocol": "tcp", "port": bind.port, "flows": bind.flows}
                for bind in self.binds
            ],
            "flows_counted_by": self.flows_counted_by,
            "flows_problems": list(self.flows_problems),
            "accepted": self._packets(Action.ACCEPT),
            "bounced": self._packets(Action.BOUNCE),
            "dropped": self._packets(Action.DROP),
            "counters": self.counters,
            "bounced_by_hop": {str(hop + 1): count for hop, count in self.bounced_by_hop.items()},
            "syn_cookies_in_use": bool(self.internals["syn_cookies_in_use"]),
            "syn_cookie_judge": self.cookie_judge,
            "syn_cookies_judged": self.internals["cookies_judged"],
            "queue": self.queue,
            "mss": {**self.mss, "problem": self.mss_problem},
        }

    def _packets(self, action: Action) -> int:
        return sum(self.counters[reason.name] for reason in REASONS if reason.action is action)

    def prometheus(self) -> bytes:
        """The text of /metrics."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(self))
        return generate_latest(registry)


def queue_state(queue_num: int) -> dict[str, int]:
    """The kernel's own numbers of an NFQUEUE: waiting packets, and losses because the queue or the socket was full."""
    try:
        lines = QUEUES.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        number, _, waiting, _, _, queue_dropped, socket_dropped, *_ = map(int, line.split())
        if number == queue_num:
            return {"waiting": waiting, "queue_full": queue_dropped, "socket_full": socket_dropped}
    return {}


class _Families(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        r = self._reading
        info = GaugeMetricFamily("glb_agent_info", "Version and engine of the agent", labels=["version", "engine"])
        info.add_metric([__version__, r.engine], 1)
        yield info
        for name, action, help_text in (
            (
                "glb_agent_accepted_packets",
                Action.ACCEPT,
                "Tunnel packets whose inner packet was handed to the host's stack",
            ),
            ("glb_agent_dropped_packets", Action.DROP, "Tunnel packets dropped"),
        ):
            family = CounterMetricFamily(name, help_text, labels=["reason"])
            for reason in REASONS:
                if reason.action is action:
                    family.add_metric([reason.name], r.counters[reason.name])
            yield family
        bounced = CounterMetricFamily(
            "glb_agent_bounced_packets", "Tunnel packets sent on, by position in the hop list", labels=["hop"]
        )
        for hop in sorted({0, *r.bounced_by_hop}):
            bounced.add_metric([str(hop + 1)], r.bounced_by_hop.get(hop, 0))
        yield bounced
        yield CounterMetricFamily(
            "glb_agent_bounced_by_host_packets",
            "Bounced packets that the host's stack sends (also in bounced): all of the netfilter engine's",
            value=r.internals["by_host"],
        )
        yield CounterMetricFamily(
            "glb_agent_last_resort_packets",
            "Packets that no hop knew, accepted here (also in accepted): should not grow but for scans and dead flows",
            value=r.counters["last_resort"],
        )
        flows = GaugeMetricFamily("glb_agent_flows", "Live TCP flows by VIP", labels=["vip"])
        for vip, count in r.flows.items():
            flows.add_metric([vip], count)
        yield flows
        binds = GaugeMetricFamily("glb_agent_bind_flows", "Live TCP flows by VIP and port", labels=["vip", "port"])
        for bind in r.binds:
            binds.add_metric([bind.address, "other" if bind.port is None else str(bind.port)], bind.flows)
        yield binds
        yield CounterMetricFamily(
            "glb_agent_look_ups", "Questions to the kernel's socket table", value=r.internals["look_ups"]
        )
        yield CounterMetricFamily(
            "glb_agent_recalled_packets",
            "Packets decided from memory, without a question",
            value=r.internals["recalled"],
        )
        yield GaugeMetricFamily(
            "glb_agent_syn_cookies_in_use",
            "1 while the kernel sends SYN cookies",
            value=r.internals["syn_cookies_in_use"],
        )
        judged = CounterMetricFamily(
            "glb_agent_syn_cookies_judged",
            "Segments to a listener that might answer a SYN cookie, by who judges them: there is one judge at a time",
            labels=["judge"],
        )
        judged.add_metric([r.cookie_judge], r.internals["cookies_judged"])
        yield judged
        yield GaugeMetricFamily(
            "glb_agent_queue_packets", "Packets waiting in the queue", value=r.queue.get("waiting", 0)
        )
        lost = CounterMetricFamily(
            "glb_agent_queue_lost_packets", "Packets the kernel dropped before the agent saw them", labels=["cause"]
        )
        for cause in ("queue_full", "socket_full"):
            lost.add_metric([cause], r.queue.get(cause, 0))
        yield lost
        yield CounterMetricFamily(
            "glb_agent_verdict_errors", "Verdicts that the kernel refused", value=r.internals["verdict_errors"]
        )
        clamp = GaugeMetricFamily(
            "glb_agent_mss_clamp_bytes",
            "Most that SYN+ACKs from the VIPs state as MSS; 0: not clamped",
            labels=["family"],
        )
        for name in ("ipv4", "ipv6"):
            clamp.add_metric([name], r.mss.get(name, 0))
        yield clamp
        yield CounterMetricFamily(
            "glb_agent_reload_failures", "Configurations refused at a reload", value=r.reload_failures
        )
        yield GaugeMetricFamily(
            "glb_agent_last_reload_success_timestamp_seconds",
            "When the configuration in force was read",
            value=r.loaded_at,
        )
