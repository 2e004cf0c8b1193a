"""Pull and unpack: `docker pull` from one local registry into skepd and into dockerd, in turns within each repetition.

    sudo .venv/bin/python bench/pull.py [--reps 5] [--sizes small,medium,wide,big] [--dockerd FILE] [--json FILE]

pull     the image is not there: manifest, config and layers fetched, digests checked, unpacked; until the command returns
again    the image is there: one look at the registry
synced   the same as pull, then `sync` of the file system: what the peer has left in memory only is paid for too. skepd flushes what it has
         unpacked before it says so, dockerd does not.
cpu      of the daemons, in a pull

The ratio says how many times faster skepd is.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import images
from tables import Table, timed

import peers
from skep.local.build import Built, image, layer, program
from skep.local.images import build_echo_image


def wide() -> Built:
    """Five layers of 50 MB."""
    rng = random.Random(3)
    block = images.words(rng, 4 << 20)
    return image([layer({f"l{n}/part{i}": program(rng.randbytes(1 << 20) + block) for i in range(10)}) for n in range(5)])


BUILDERS: dict[str, Callable[[], Built]] = {
    "small": build_echo_image,
    "medium": images.many_files,
    "wide": wide,
    "big": lambda: images.one_big(250 << 20),
}
SAID = {
    "small": "2 MB, 2 layers",
    "medium": "20 MB, 4 layers, 5,000 files",
    "wide": "250 MB, 5 layers",
    "big": "250 MB, 1 layer",
}


def pull(peer: peers.Peer, name: str, wall: Table, cpu: Table) -> None:
    reference = f"{peers.REGISTRY}/{name}:1"
    os.sync()
    spent, begun = peer.group.cpu(), time.perf_counter()
    peer.docker("pull", "-q", reference)
    pulled = time.perf_counter()
    cpu.add(SAID[name], peer.name, peer.group.cpu() - spent)
    os.sync()
    wall.add(f"pull {SAID[name]}", peer.name, pulled - begun)
    wall.add("  synced", peer.name, time.perf_counter() - begun)
    wall.add("  again", peer.name, timed(lambda: peer.docker("pull", "-q", reference)))
    peer.docker("rmi", reference)


def main() -> None:
    parser = peers.arguments(__doc__, reps=5)
    parser.add_argument("--sizes", default=",".join(BUILDERS))
    options = peers.parsed(parser)
    names = options.sizes.split(",")
    if unknown := set(names) - set(BUILDERS):
        raise SystemExit(f"bench: no such size: {', '.join(sorted(unknown))}; there are: {', '.join(BUILDERS)}")
    with peers.stage(options, names) as ground:
        columns = [peer.name for peer in ground.peers]
        tables = []
        for name in names:
            wall, cpu = Table("ms"), Table("ms of CPU")
            for _ in range(options.reps):
                for peer in ground.peers:
                    pull(peer, name, wall, cpu)
            wall.show(columns)
            cpu.show(columns)
            tables += [wall, cpu]
    peers.finish(options, *tables)


if __name__ == "__main__":
    main()
