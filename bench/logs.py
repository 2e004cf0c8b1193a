"""Log throughput: a container writes LINES lines of BYTES bytes as fast as it is read; the same program under skepd and dockerd, in turns.

    sudo .venv/bin/python bench/logs.py [--lines 1000000] [--bytes 100] [--reps 3] [--dockerd FILE] [--json FILE]

written     lines a second, from the container's start to the last write to its log file (both stamps from the same clock: the start that
            the peer reports, the file's time); that all lines are there is checked
written, by line   the same from a program that writes each line by itself
read back   `docker logs` to /dev/null, lines a second
tail        `docker logs --tail 100`, milliseconds
cpu         of the daemons (and of conmon, containerd and its shims), microseconds a line

busybox awk prints the lines in blocks of 4 KiB; `by line` flushes after each. Docker keeps json-file, skepd conmon's file, both with
their defaults.
"""

from __future__ import annotations

import subprocess
import time
from datetime import datetime

from tables import Table, timed

import peers

IMAGE = f"{peers.REGISTRY}/box:1"
AWK = 'BEGIN { s = sprintf("%" (bytes - 1) "s", ""); gsub(/ /, "x", s); while (lines-- > 0) { print s; if (flush) fflush() } }'


def run(peer: peers.Peer, lines: int, size: int, *, flush: bool) -> tuple[str, float, float]:
    """(container, seconds, seconds of CPU)."""
    spent = peer.group.cpu()
    settings = [f"lines={lines}", f"bytes={size}", f"flush={int(flush)}"]
    words = [word for setting in settings for word in ("-v", setting)]
    id = peer.docker("run", "-d", "--network", "none", IMAGE, "awk", *words, AWK)
    peer.docker("wait", id)
    file = peer.log_file(id)
    seen = -1
    while (now := file.stat().st_size) != seen:
        seen = now
        time.sleep(0.2)
    begun = peer.api("GET", f"/containers/{id}/json")["State"]["StartedAt"]
    took = file.stat().st_mtime - datetime.fromisoformat(begun[:26].rstrip("Z") + "+00:00").timestamp()
    return id, took, peer.group.cpu() - spent


def read(peer: peers.Peer, id: str) -> float:
    begun = time.perf_counter()
    subprocess.run(peer.command("logs", id), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def measure(peer: peers.Peer, lines: int, size: int, speed: Table, cpu: Table, wall: Table) -> None:
    id, took, spent = run(peer, lines, size, flush=False)
    speed.add("written", peer.name, lines / took)
    cpu.add("written", peer.name, spent / lines)
    whole = subprocess.run(peer.command("logs", id), capture_output=True, check=True)
    if len(whole.stdout) != lines * size or whole.stdout.count(b"\n") != lines:
        raise SystemExit(f"bench: {peer.name}: of {lines} lines the log has {len(whole.stdout)} bytes {whole.stderr[:200]!r}")
    spent = peer.group.cpu()
    speed.add("read back", peer.name, lines / read(peer, id))
    cpu.add("read back", peer.name, (peer.group.cpu() - spent) / lines)
    wall.add("tail", peer.name, timed(lambda: peer.docker("logs", "--tail", "100", id)))
    peer.docker("rm", id)
    few = max(1, lines // 5)
    id, took, spent = run(peer, few, size, flush=True)
    speed.add("written, by line", peer.name, few / took)
    cpu.add("written, by line", peer.name, spent / few)
    peer.docker("rm", id)


def main() -> None:
    options = peers.parsed(peers.arguments(__doc__, lines=1_000_000, bytes=100, reps=3))
    speed = Table("thousand lines/s", factor=1e-3, more_is_better=True)
    cpu, wall = Table("us of CPU a line", factor=1e6), Table("ms")
    with peers.stage(options) as ground:
        for peer in ground.peers:
            peer.docker("pull", "-q", IMAGE)
        for _ in range(options.reps):
            for peer in ground.peers:
                measure(peer, options.lines, options.bytes, speed, cpu, wall)
        columns = [peer.name for peer in ground.peers]
        for table in (speed, cpu, wall):
            table.show(columns)
    peers.finish(options, speed, cpu, wall)


if __name__ == "__main__":
    main()
