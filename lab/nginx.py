"""nginx on a proxy: one process, the lab's files, and its own name in every answer."""

from __future__ import annotations

from pathlib import Path

from lab import plan

PROXY_HEADER = "X-Proxy"  # names the proxy that answered


def config(proxy: plan.Host, home: Path, content: Path) -> str:
    """``home``: a directory of its own for temporary files and logs; ``content``: the document root."""
    return f"""\
daemon off;
master_process off;
pid {home}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    log_format lab '$msec $remote_addr:$remote_port $server_addr $request_uri $status $body_bytes_sent';
    access_log {home}/access.log lab;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    send_timeout 120s;
    server {{
        listen {plan.HTTP_PORT} backlog=4096;
        listen [::]:{plan.HTTP_PORT} backlog=4096;
        root {content};
        default_type application/octet-stream;
        add_header {PROXY_HEADER} {proxy.name};
        location = / {{ return 200 "served by {proxy.name}\\n"; }}
    }}
}}
"""
