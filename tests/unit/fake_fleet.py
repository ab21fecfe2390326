"""Admin endpoints of directors and agents that answer what a test wants."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from glb.store.file import load_tables
from glb.table.digest import table_digest
from glb.table.rows import build_rows

Answer = Callable[[], Any]  # what GET /status gives, as JSON; bytes are sent as they are


def _handler(answer: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/status":
                self.send_error(404)
                return
            value = answer()
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

        def address_string(self) -> str:
            return "peer"

    return Handler


@contextmanager
def endpoint(answer: Answer) -> Iterator[str]:
    """Serve on a free port of loopback; the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(answer)) as server, _running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def unix_endpoint(path: Path, answer: Answer) -> Iterator[str]:
    """Serve on a unix socket; the URL."""
    with socketserver.ThreadingUnixStreamServer(str(path), _handler(answer)) as server, _running(server):
        yield f"unix:{path}"


@contextmanager
def _running(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


def director_status(path: Path, **changes: object) -> dict[str, Any]:
    """What a director that follows this file answers."""
    tables = [
        {
            "name": table.name,
            "digest": table_digest(table, build_rows(table)),
            "backends": [
                {"address": str(b.address), "state": b.state.value, "healthy": b.healthy, "packets": 7}
                for b in table.backends
            ],
        }
        for table in load_tables(path).tables
    ]
    return {
        "version": "1.2.3",
        "pid": 1,
        "interface": "eth0",
        "xdp_mode": "native",
        "table_source": str(path),
        "tables": tables,
        "last_reload": {"ok": True, "error": None, "at": 0},
        **changes,
    }


def agent_status(flows: int, **changes: object) -> dict[str, Any]:
    """What an agent with so many flows answers."""
    return {
        "version": "1",
        "engine": "netfilter",
        "vips": [],
        "flows": {},
        "flows_total": flows,
        "counters": {},
        **changes,
    }


def full_agent_status(flows: int, **changes: object) -> dict[str, Any]:
    """What an agent of this version answers."""
    return agent_status(
        flows,
        version="0.1.0",
        engine="xdp",
        mode="native",
        vips=["203.0.113.10"],
        binds=[{"address": "203.0.113.10", "protocol": "tcp", "port": 443, "flows": flows}],
        flows_problems=[],
        accepted=81230,
        bounced=120,
        dropped=0,
        counters={"last_resort": 3},
        mss={"ipv4": 1412, "ipv6": 0, "problem": None},
        **changes,
    )
