"""The tutorial's `gihyodocker/nginx-proxy` for machines without internet: Debian's real nginx in an image built from files.

As the original it sends every request to BACKEND_HOST. The name is asked for anew while it runs (every second), so a backend whose service
comes later, or has moved, needs no restart: until it resolves the answer is 502.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from skep.errors import NotFound, SkepError
from skep.local.build import Built, Entry, directory, image, layer, link, program, text
from skep.local.registry import find_tool

_CONFIG = """\
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr warn;
events { worker_connections 1024; }
http {
    resolver @RESOLVER@ valid=1s ipv6=off;
    resolver_timeout 2s;
    log_format main '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"';
    access_log /dev/stdout main;
    client_body_temp_path /tmp/client; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    server {
        listen @PORT@;
        location / {
            set $backend "@BACKEND_HOST@";
            proxy_pass http://$backend;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_connect_timeout 2s;
        }
    }
}
"""

_ENTRYPOINT = r"""#!/bin/sh
# nginx itself is the container's first process: it gets the signals.
set -eu
: "${BACKEND_HOST:=localhost:8080}"
case $BACKEND_HOST in
    *[!A-Za-z0-9._:-]*) echo "BACKEND_HOST must be a host with a port, not '$BACKEND_HOST'" >&2; exit 2 ;;
esac
resolver=$(awk '$1 == "nameserver" { print $2; exit }' /etc/resolv.conf)
sed -e "s|@BACKEND_HOST@|$BACKEND_HOST|" -e "s|@PORT@|${NGINX_PORT:-80}|" -e "s|@RESOLVER@|${resolver:-127.0.0.11}|" \
    /etc/nginx/nginx.conf.in >/tmp/nginx.conf
exec /usr/sbin/nginx -c /tmp/nginx.conf -g 'daemon off;'
"""


def build_nginx_proxy_image(base: dict[str, Entry]) -> Built:
    """`base`: a small Unix with sh, sed and awk. Raises NotFound with what to do when nginx is not here."""
    nginx = find_tool("nginx")
    own: dict[str, Entry] = {
        "usr/sbin/nginx": program(nginx.read_bytes()),
        "etc/nginx/nginx.conf.in": text(_CONFIG),
        "entrypoint.sh": text(_ENTRYPOINT, executable=True),
        "var/log/nginx": directory(),
        "var/lib/nginx": directory(),
        "var/log/nginx/error.log": link("/dev/stderr"),
        "etc/nsswitch.conf": text("hosts: files dns\n"),
    }
    for name, library in libraries(nginx).items():
        own[name] = program(library.read_bytes())
    return image(
        [layer(base), layer(own)],
        entrypoint=["/entrypoint.sh"],
        env=["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NGINX_PORT=80"],
        ports=["80/tcp"],
        more={"StopSignal": "SIGQUIT"},
    )


def libraries(path: Path) -> dict[str, Path]:
    """What a program is linked with, by the path at which it looks for it; and what glibc loads by itself for users and names."""
    try:
        said = subprocess.run(["ldd", str(path)], capture_output=True, text=True, timeout=10, check=True, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.SubprocessError):
        raise SkepError(f"{path}: ldd cannot say what it is linked with") from None
    found: dict[str, Path] = {}
    for line in said.stdout.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        where = (rest if arrow else name).split(" (")[0].strip()
        if where == "not found":
            raise NotFound(f"{path.name} needs {name}, which is not on this host")
        if where.startswith("/"):
            found[where.lstrip("/")] = Path(where).resolve()
    folder = next((Path(name).parent for name in found if "/libc.so" in name), None)
    if folder is not None:
        for name in ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"):
            if (Path("/") / folder / name).exists():
                found[str(folder / name)] = (Path("/") / folder / name).resolve()
    return found
