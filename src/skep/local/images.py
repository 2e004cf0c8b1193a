"""The tutorial's images, and those of the benchmarks, built from Debian's static busybox: a cluster without internet can run something.

`OWN` and `STAND_INS` are the tables: to add an image, write a builder and name it there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from skep.errors import NotFound
from skep.local.build import Built, Entry, directory, fifo, image, layer, link, program, push_image, text
from skep.local.proxy import build_nginx_proxy_image
from skep.local.registry import find_tool

_STATIC = "busybox-static is needed to build images (apt-get install busybox-static)"

_ANSWER = r"""#!/bin/sh
# One connection: stdin and stdout are the client, file descriptor 3 is the container's standard output.
body='Hello Docker!!'
cr=$(printf '\r')
answer() { # STATUS BODY
    printf 'HTTP/1.1 %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %s\r\nConnection: close\r\n\r\n' "$1" "${#2}"
    [ "$method" = HEAD ] || printf '%s' "$2"
}
IFS=' ' read -r -t 30 -n 8192 method target version || exit 0
wrong=
case $version in
    HTTP/1.*) ;;
    *) wrong='400 Bad Request' ;;
esac
length=0 lines=0
while IFS= read -r -t 30 -n 8192 line; do
    line=${line%"$cr"}
    [ -n "$line" ] || break
    lines=$((lines + 1))
    [ "$lines" -le 200 ] || { wrong='431 Request Header Fields Too Large'; break; }
    case $line in
        [Cc][Oo][Nn][Tt][Ee][Nn][Tt]-[Ll][Ee][Nn][Gg][Tt][Hh]:*) length=${line#*:} length=${length##* } ;;
        [Ee][Xx][Pp][Ee][Cc][Tt]:*100-*) printf 'HTTP/1.1 100 Continue\r\n\r\n' ;;
    esac
done
case $length in
    '' | *[!0-9]* | ???????????*) wrong='400 Bad Request' ;;
esac
if [ -n "$wrong" ]; then
    answer "$wrong" "${wrong#* }"
    # closing with bytes unread would take the answer away from the client again
    [ "$lines" -le 200 ] || timeout 1 head -c 1000000 >/dev/null
    exit 0
fi
echo "received request: $method $target" >&3
[ "$length" = 0 ] || head -c "$length" >/dev/null
answer '200 OK' "$body"
"""

_SERVE = r"""#!/bin/sh
# A handler per connection. The first process of a container gets no signal that it has no handler for: hence the trap.
# Each further l makes nc's backlog one longer.
trap 'exit 0' TERM INT
exec 3>&1
echo 'start server' >&3
nc -@BACKLOG@ -p "${1:-8080}" -e /usr/local/bin/answer &
wait $!
"""

_BENCH = r"""#!/bin/sh
# bench pause | bench http [PORT] | bench chatty LINES [BYTES]. Waiting is one process: a read from a FIFO that nobody writes to.
trap 'exit 0' TERM INT
case ${1:-pause} in
    pause) ;;
    http) shift; exec /usr/local/bin/serve "$@" ;;
    chatty)
        awk -v lines="$2" -v bytes="${3:-80}" \
            'BEGIN { s = sprintf("%" (bytes - 1) "s", ""); gsub(/ /, "x", s); while (lines-- > 0) print s }'
        ;;
    *) echo "bench: unknown: $1" >&2; exit 2 ;;
esac
while :; do read -r _ <>/.never; done
"""


def busybox() -> Path:
    """A static busybox with what the scripts need. Raises NotFound with what to install."""
    found = find_tool("busybox")
    try:
        listed = subprocess.run([found, "--list"], capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        raise NotFound(f"{found} cannot be run; {_STATIC}") from None
    missing = {"sh", "nc", "head", "awk", "timeout"} - set(listed)
    if missing or not _is_static(found):
        raise NotFound(f"{found} {'has no ' + ', '.join(sorted(missing)) if missing else 'is not static'}; {_STATIC}")
    return found


def _is_static(path: Path) -> bool:
    """No program header of type PT_INTERP in this ELF file."""
    head = path.read_bytes()[:4096]
    if head[:4] != b"\x7fELF" or head[4] != 2:
        return head[:4] == b"\x7fELF"
    start, size, count = int.from_bytes(head[32:40], "little"), int.from_bytes(head[54:56], "little"), int.from_bytes(head[56:58], "little")
    return all(int.from_bytes(head[start + i * size : start + i * size + 4], "little") != 3 for i in range(count))


def base_files() -> dict[str, Entry]:
    """A small Unix: busybox under all its names, users, and the usual directories."""
    found = busybox()
    applets = subprocess.run([found, "--list"], capture_output=True, text=True, timeout=10, check=True).stdout.split()
    files = {f"bin/{name}": link("busybox") for name in applets if name != "busybox"}
    return files | {
        "bin/busybox": program(found.read_bytes()),
        "usr/bin/env": link("/bin/busybox"),
        "etc/passwd": text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        "etc/group": text("root:x:0:\nnogroup:x:65534:\n"),
        "root": directory(0o700),
        "tmp": directory(0o1777),
        **{name: directory() for name in ("dev", "etc", "proc", "sys", "var", "run", "usr/local/bin", "sbin")},
    }


def _server() -> dict[str, Entry]:
    return {
        "usr/local/bin/answer": text(_ANSWER, executable=True),
        "usr/local/bin/serve": text(_SERVE.replace("@BACKLOG@", "l" * 128), executable=True),
    }


def build_echo_image() -> Built:
    """The tutorial's echo: HTTP on 8080, every path answers `Hello Docker!!`, each request is a line on standard output."""
    return image([layer(base_files()), layer(_server())], entrypoint=["/usr/local/bin/serve"], ports=["8080/tcp"])


def build_bench_image() -> Built:
    """For benchmarks: `pause` is one small process that ends at once on SIGTERM."""
    own = _server() | {"bench": text(_BENCH, executable=True), ".never": fifo()}
    return image([layer(base_files()), layer(own)], entrypoint=["/bench"], cmd=["pause"])


def _nginx_proxy() -> Built:
    return build_nginx_proxy_image(base_files())


OWN: dict[str, Callable[[], Built]] = {
    "example/echo": build_echo_image,
    "example/bench": build_bench_image,
}
"""Images that only a registry of one's own has."""

STAND_INS: dict[str, Callable[[], Built]] = {
    "gihyodocker/nginx-proxy": _nginx_proxy,
}
"""Images of Docker Hub that the cluster's registry can stand in for, as a mirror, where there is no internet."""


def push_images(registry_url: str, images: Mapping[str, Callable[[], Built]], *, tag: str = "latest") -> Iterator[str]:
    """Build and push all of them; says each one's name with its digest."""
    for name, build in images.items():
        yield f"{name}:{tag}@{push_image(registry_url, name, tag, build())}"
