"""GLB on the lab's hosts: agents on the proxies, glb-director and BIRD on the directors, one table file for both."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab import bird, plan
from lab.errors import LabError
from lab.program import Program, until
from lab.reaper import PIN_ROOT
from lab.site import BIN, Lab
from proxy_agent.xdp import cookies_in

TABLE = "web"
DEFAULT_HOPS = "3"  # room for two unsettled changes (docs/protocol/table.md): a drain with its fill, and an addition
_START_DEADLINE_S = 20.0
_CONVERGE_DEADLINE_S = 10.0

# For the lab only. A real fleet's keys are secret: who knows hash_key can aim at one row.
_HASH_KEY = "0123456789abcdef0123456789abcdef"
_SEED = "fedcba9876543210fedcba9876543210"


class Fleet:
    """ENGINE, DATAPATH and HOPS of the environment go into the files as they are; a wrong one is refused there."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.engine = os.environ.get("ENGINE") or "auto"
        self.datapath = os.environ.get("DATAPATH") or "xdp"
        hops = os.environ.get("HOPS") or DEFAULT_HOPS
        self.hops: int | str = int(hops) if hops.isdecimal() else hops
        self.tables = tables_of(lab.home)
        self.directors: dict[str, Program] = {}
        self.agents: dict[str, Program] = {}

    def start(self) -> None:
        """Start everything; return when the router has routes over every director."""
        self._write_tables([{"ip": str(proxy.v4), "state": "active", "healthy": True} for proxy in plan.FIRST_PROXIES])
        for proxy in plan.PROXIES:
            self._start_agent(proxy)
        for director in plan.DIRECTORS:
            self.lab.start_bird(director.name, bird.director_config(director))
            path = self.lab.directory(director.name) / "director.toml"
            path.write_text(director_config(director, self.datapath, self.tables, PIN_ROOT / self.lab.prefix))
            argv = [str(BIN / "glb-director"), "run", "--config", str(path)]
            self.directors[director.name] = self.lab.program(director.name, "glb-director", argv).start()
        for proxy in plan.PROXIES:
            self._await_agent(proxy)
        self.await_announced(self.directors, _START_DEADLINE_S)

    def announcing(self) -> set[str]:
        """The directors to which the router sends the VIP, by both address families."""
        seen = [set[str](), set[str]()]
        for names, ip, vip in zip(seen, (["ip"], ["ip", "-6"]), plan.GLB_VIP.addresses, strict=True):
            routes = self.lab.run(plan.ROUTER, [*ip, "route", "show", str(vip)])
            names |= {director.name for director in plan.DIRECTORS if f"dev {director.router_end} " in routes}
        return seen[0] & seen[1]

    def await_announced(self, names: Iterable[str], timeout_s: float = _CONVERGE_DEADLINE_S) -> None:
        wanted = set(names)
        running = [program for name, program in self.directors.items() if name in wanted]
        what = f"the router to send the VIP to {', '.join(sorted(wanted))}"

        def announced() -> bool:
            self.lab.check()
            return self.announcing() == wanted

        until(announced, what, timeout_s, needs=running)

    def kill(self, director: plan.Host) -> None:
        """``kill -9`` a glb-director; return when the router has taken it out."""
        self.directors[director.name].stop(signal.SIGKILL)
        self.await_announced(set(self.directors) - {director.name})

    def revive(self, director: plan.Host) -> None:
        """Start a killed glb-director again; return when the router sends to it."""
        self.directors[director.name].start()
        self.await_announced(self.directors, _START_DEADLINE_S)

    def flood(self, syns_per_s: float) -> Program:
        """Flood the VIPs with SYNs from the client's host until the program is stopped; 0: as fast as it goes."""
        for network in (plan.FLOOD_V4, plan.FLOOD_V6):
            self.lab.run(plan.ROUTER, ["ip", f"-{network.version}", "route", "replace", "blackhole", str(network)])
        mac = json.loads(self.lab.run(plan.ROUTER, ["ip", "-j", "link", "show", plan.CLIENT.router_end]))[0]["address"]
        argv = [sys.executable, "-m", "lab.flood", mac, str(syns_per_s)]
        flood = self.lab.program(plan.CLIENT.name, "flood", argv).start()
        until(lambda: "flooding" in flood.log.read_text(), "the flood to begin", _START_DEADLINE_S, needs=[flood])
        return flood

    def cookies_sent(self, proxy: plan.Host) -> int:
        """How many SYN cookies the proxy's kernel has sent."""
        return cookies_in(self.lab.run(proxy.name, ["cat", "/proc/net/netstat"]))

    def end_agent(self, proxy: plan.Host, number: signal.Signals) -> None:
        self.agents[proxy.name].stop(number)

    def begin_agent(self, proxy: plan.Host) -> None:
        """Start an ended agent again; return when it answers, its program in the place of the last one's."""
        self.agents[proxy.name].start()
        self._await_agent(proxy)

    def glbctl(self, *arguments: str) -> str:
        """Run glbctl on the ops host; its stdout."""
        return self.lab.run(plan.OPS.name, [str(BIN / "glbctl"), *arguments])

    def change(self, verb: str, proxy: plan.Host) -> None:
        """``glbctl drain|fill|activate|deactivate`` a proxy; return when all directors forward by the new table."""
        directors = [argument for url in director_urls() for argument in ("--director", url)]
        wait = ["--wait", "--timeout", str(_CONVERGE_DEADLINE_S)]
        self.glbctl(verb, TABLE, str(proxy.v4), "--store", str(self.tables), *directors, *wait)

    def add(self, proxy: plan.Host) -> None:
        """Put a proxy into the table, as an operator would with an editor; return when all directors forward by it."""
        backends = json.loads(self.tables.read_text())["tables"][0]["backends"]
        self._write_tables([*backends, {"ip": str(proxy.v4), "state": "active", "healthy": True}])
        self.await_converged()

    def await_converged(self) -> None:
        """Return when every running director forwards by the table in the file."""
        wanted = self.digest()
        running = {name: program for name, program in self.directors.items() if program.running}
        until(
            lambda: all(wanted in self.metrics(name, plan.DIRECTOR_ADMIN_PORT) for name in running),
            f"the directors {', '.join(running)} to forward by the table with digest {wanted[:12]}",
            _CONVERGE_DEADLINE_S,
            needs=list(running.values()),
        )

    def digest(self) -> str:
        """The digest that a director forwarding by the file must have."""
        return self.glbctl("table", "digest", str(self.tables)).split()[-1]

    def shares(self) -> dict[str, float]:
        """The share of new flows each proxy should get: of the rows, those in which it is the first hop."""
        shown = json.loads(self.glbctl("table", "show", str(self.tables), "-o", "json"))
        rows = shown["tables"][0]["rows"]
        first = Counter(row["hops"][0] for row in rows)
        return {proxy.name: first[str(proxy.v4)] / len(rows) for proxy in plan.PROXIES if first[str(proxy.v4)]}

    def metrics(self, host: str, port: int) -> str:
        """What the program's admin endpoint says at /metrics; "" while it does not answer."""
        try:
            return self.lab.run(
                plan.OPS.name, ["curl", "-sf", "-m", "2", f"http://{plan.host_named(host).v4}:{port}/metrics"]
            )
        except LabError:
            return ""

    def bounced(self, proxy: plan.Host, hop: int | None = None) -> int:
        """How many packets the proxy's agent has sent on; with ``hop``, to that place (from 1) in their list."""
        labels = "" if hop is None else f'{{hop="{hop}"}}'
        return self._counter(proxy, f"glb_agent_bounced_packets_total{labels}")

    def syns(self, proxy: plan.Host) -> int:
        """How many SYNs, each a new flow or another attempt at one, the proxy's agent has accepted."""
        return self._counter(proxy, 'glb_agent_accepted_packets_total{reason="syn"}')

    def _counter(self, proxy: plan.Host, series: str) -> int:
        """The sum over all series of the agent that begin so."""
        lines = self.metrics(proxy.name, plan.AGENT_ADMIN_PORT).splitlines()
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.startswith(series))

    def _start_agent(self, proxy: plan.Host) -> None:
        home = self.lab.directory(proxy.name)
        path = home / "agent.toml"
        path.write_text(agent_config(proxy, self.engine, home / "agent", PIN_ROOT / self.lab.prefix))
        argv = [str(BIN / "glb-proxy-agent"), "run", "--config", str(path)]
        self.agents[proxy.name] = self.lab.program(proxy.name, "glb-proxy-agent", argv).start()

    def _await_agent(self, proxy: plan.Host) -> None:
        until(
            lambda: self.metrics(proxy.name, plan.AGENT_ADMIN_PORT),
            f"the agent on {proxy.name} to answer",
            _START_DEADLINE_S,
            needs=[self.agents[proxy.name]],
        )

    def _write_tables(self, backends: Sequence[object]) -> None:
        binds = [{"ip": str(address), "proto": "tcp", "port": plan.HTTP_PORT} for address in plan.GLB_VIP.addresses]
        table = {
            "name": TABLE,
            "hash_key": _HASH_KEY,
            "seed": _SEED,
            "hops": self.hops,
            "binds": binds,
            "backends": backends,
        }
        new = self.tables.with_suffix(".new")
        new.write_text(json.dumps({"tables": [table]}, indent=2) + "\n")
        # The directors see the new table after this call.
        new.replace(self.tables)


def tables_of(home: Path) -> Path:
    """Where the lab with this run directory keeps its forwarding tables."""
    return home / "tables.json"


def director_urls() -> list[str]:
    return [f"http://{director.v4}:{plan.DIRECTOR_ADMIN_PORT}" for director in plan.DIRECTORS]


def glbctl_environment(home: Path) -> dict[str, str]:
    """What lets glbctl on the ops host find everything without options."""
    agents = [f"{proxy.v4}=http://{proxy.v4}:{plan.AGENT_ADMIN_PORT}" for proxy in plan.PROXIES]
    urls = {"GLB_DIRECTORS": ",".join(director_urls()), "GLB_AGENTS": ",".join(agents)}
    return {"GLB_STORE": str(tables_of(home)), **urls}


def director_config(director: plan.Host, datapath: str, tables: Path, pins: Path) -> str:
    return f"""\
interface = "eth0"
datapath = "{datapath}"
table = "{tables}"
outbound_src_ip = "{director.v4}"
announce_device = "{bird.ANNOUNCE_DEVICE}"
pin_dir = "{pins}"
admin = "{director.v4}:{plan.DIRECTOR_ADMIN_PORT}"

[hash_fields]
src_addr = true
"""


def agent_config(proxy: plan.Host, engine: str, state: Path, pins: Path) -> str:
    vips = ", ".join(f'"{address}"' for address in plan.GLB_VIP.addresses)
    sources = ", ".join(f'"{host.v4}"' for host in (*plan.DIRECTORS, *plan.PROXIES) if host != proxy)
    return f"""\
interface = "eth0"
engine = "{engine}"
gue_port = {plan.GUE_PORT}
vips = [{vips}]
allowed_sources = [{sources}]
admin = "{proxy.v4}:{plan.AGENT_ADMIN_PORT}"
state_dir = "{state}"
pin_dir = "{pins}"
"""
