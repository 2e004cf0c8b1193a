"""Memory that a container costs beside its own processes: skepd, conmon and the resolver; dockerd, containerd, its shims and docker-proxy.

    sudo .venv/bin/python bench/memory.py [--count 20] [--reps 3] [--dockerd FILE] [--json FILE]

Of all processes of the daemons: PSS (pages that several share are counted once, in parts) and RSS, before and after COUNT containers were
started, on the default network and on a user network with a published port each. The difference by COUNT is what one costs; it is spread
by program. What the kernel keeps for cgroups, mounts and namespaces is in neither. The ratio says how many times less skepd needs.
"""

from __future__ import annotations

import itertools
import time

from tables import Table

import peers

IMAGE = f"{peers.REGISTRY}/box:1"
PORTS = itertools.count(20000)
Memory = dict[str, tuple[int, float, float]]


def settled(peer: peers.Peer) -> Memory:
    """When it does not change much any more."""
    before = total(peer.group.memory(), 2)
    for _ in range(20):
        time.sleep(0.5)
        found = peer.group.memory()
        if abs(total(found, 2) - before) < 0.2:
            return found
        before = total(found, 2)
    return found


def total(found: Memory, which: int) -> float:
    return sum(one[which] for one in found.values())


def measure(peer: peers.Peer, count: int, kind: str, more: tuple[str, ...], pss: Table, rss: Table) -> Memory:
    before = settled(peer)
    ids = [
        peer.docker("run", "-d", *(word.replace("PORT", str(next(PORTS))) for word in more), IMAGE, "sleep", "100000") for _ in range(count)
    ]
    after = settled(peer)
    pss.add(f"a container, {kind}", peer.name, (total(after, 2) - total(before, 2)) / count)
    rss.add(f"a container, {kind}", peer.name, (total(after, 1) - total(before, 1)) / count)
    peer.docker("rm", "-f", *ids)
    none = (0, 0.0, 0.0)
    return {n: (a[0], (a[1] - before.get(n, none)[1]) / count, (a[2] - before.get(n, none)[2]) / count) for n, a in after.items()}


def main() -> None:
    options = peers.parsed(peers.arguments(__doc__, count=20, reps=3))
    pss, rss = Table("MB, PSS", factor=1), Table("MB, RSS", factor=1)
    parts: list[str] = []
    with peers.stage(options) as ground:
        for peer in ground.peers:
            peer.docker("pull", "-q", IMAGE)
            peer.docker("network", "create", "user")
            idle = settled(peer)
            pss.add("the daemons, nothing runs", peer.name, total(idle, 2))
            rss.add("the daemons, nothing runs", peer.name, total(idle, 1))
            peer.docker("run", "--rm", "--network", "user", "-p", f"{next(PORTS)}:80", IMAGE, "true")
        for repetition in range(options.reps):
            for kind, more in (("default network", ()), ("user network, -p", ("--network", "user", "-p", "PORT:80"))):
                for peer in ground.peers:
                    found = measure(peer, options.count, kind, more, pss, rss)
                    if repetition == 0:
                        each = ", ".join(f"{name} {p:.2f} ({number})" for name, (number, _, p) in sorted(found.items()))
                        parts.append(f"{peer.name}, {kind}, MB of PSS a container by program (processes): {each}")
        columns = [peer.name for peer in ground.peers]
        pss.show(columns)
        rss.show(columns)
        print("\n".join(parts))
    peers.finish(options, pss, rss)


if __name__ == "__main__":
    main()
