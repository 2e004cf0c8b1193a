"""What a pull costs, beside its limit: the same layers from the same registry through `curl | tar -xz`, side by side.

    sudo .venv/bin/python bench/images.py [--reps 5] [--json FILE]

pull     the image is not here: manifest, config, layers fetched, both digests checked, unpacked, flushed to disk
limit    the layers alone, all at once, nothing checked, flushed to disk
again    the image is here: one look at the registry
push     to a registry that has nothing of it: layers put together again, checked, compressed, sent
squeeze  the same layers through `tar -c | gzip -5`, nothing sent: what a push cannot be faster than
save     all of it into one file; load: that file into an empty node, checked and flushed

Each figure is the median of the repetitions in milliseconds, with the smallest and largest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from skep.engine.oci.files import flush_file_system
from skep.engine.oci.images import OciImages
from skep.local.build import Built, Entry, image, layer, program, push_image, text
from skep.local.images import build_echo_image
from skep.local.registry import RegistryServer


class SystemClock:
    def now(self) -> int:
        return time.time_ns()

    async def sleep(self, ns: int) -> None:
        await asyncio.sleep(ns / 1e9)


def words(rng: random.Random, size: int) -> bytes:
    """Text that compresses about as programs do."""
    vocabulary = [rng.randbytes(6).hex().encode() for _ in range(3000)]
    return b" ".join(rng.choices(vocabulary, k=size // 13 + 1))[:size]


def many_files() -> Built:
    rng = random.Random(1)
    stock = words(rng, 1 << 20)

    def files(n: int) -> dict[str, Entry]:
        return {f"usr/lib/p{n}/d{i % 50}/f{i}": text(stock[(at := rng.randrange(1 << 19)) : at + 4000].decode()) for i in range(1250)}

    return image([layer(files(n)) for n in range(4)])


def one_big(size: int) -> Built:
    rng = random.Random(2)
    block = words(rng, 4 << 20)
    return image([layer({f"lib/part{n}": program(rng.randbytes(1 << 20) + block) for n in range(size // (5 << 20))})])


IMAGES: dict[str, Callable[[], Built]] = {
    "echo: 2 layers, 2 MB": build_echo_image,
    "files: 4 layers, 5,000 files, 20 MB": many_files,
    "big: 1 layer, 250 MB": lambda: one_big(250 << 20),
}


def bare(url: str, built: Built, root: Path) -> None:
    running = []
    for n, item in enumerate(json.loads(built.manifest)["layers"]):
        (root / str(n)).mkdir(parents=True)
        fetch = subprocess.Popen(["curl", "-sf", f"{url}/v2/bench/blobs/{item['digest']}"], stdout=subprocess.PIPE)
        running += [fetch, subprocess.Popen(["tar", "-xzp", "-C", str(root / str(n))], stdin=fetch.stdout)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("bench: the bare download failed")
    flush_file_system(root)


def squeeze(node: OciImages) -> None:
    (found,) = node.all()
    running = []
    for folder in node.rootfs_layers(found.id):
        pack = subprocess.Popen(["tar", "-c", "-C", folder + "/", "."], stdout=subprocess.PIPE)
        running += [pack, subprocess.Popen(["gzip", "-5"], stdin=pack.stdout, stdout=subprocess.DEVNULL)]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("bench: tar or gzip failed")


async def save(node: OciImages, name: str, path: Path) -> None:
    with path.open("wb") as file:
        async for piece in node.save([name]):
            file.write(piece)


async def load(node: OciImages, path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(256 << 10):
                yield piece

    await node.load(pieces())


def others(folder: Path, name: str, reps: int) -> dict[str, list[float]]:
    """What can be done with an image that is here."""
    images = OciImages(folder / "data", clock=SystemClock())
    found: dict[str, list[float]] = {"push": [], "squeeze": [], "save": [], "load": []}
    for _ in range(reps):
        with RegistryServer(folder / "target") as target:
            there = f"{target.address}/bench:1"
            asyncio.run(images.tag(name, there))
            forget(folder / "data")
            fresh = OciImages(folder / "data", clock=SystemClock())
            found["push"].append(timed(lambda: asyncio.run(fresh.push(there))))  # noqa: B023
            found["squeeze"].append(timed(lambda: squeeze(fresh)))  # noqa: B023
            found["save"].append(timed(lambda: asyncio.run(save(fresh, there, folder / "saved.tar"))))  # noqa: B023
            empty = OciImages(folder / "empty", clock=SystemClock())
            found["load"].append(timed(lambda: asyncio.run(load(empty, folder / "saved.tar"))))  # noqa: B023
            asyncio.run(fresh.remove(there))
            images = OciImages(folder / "data", clock=SystemClock())
        for used in ("target", "empty"):
            shutil.rmtree(folder / used)
    return found


def forget(root: Path) -> None:
    """The layers as if they had come from no registry, so that all of a push is work."""
    for record in root.glob("layers/*/layer.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"blobs": []}))


def timed(work: Callable[[], Any]) -> float:
    os.sync()
    begin = time.monotonic()
    work()
    return (time.monotonic() - begin) * 1000


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):7.0f} ({min(values):.0f}-{max(values):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: needs root, to unpack owners")
    rows = []
    with tempfile.TemporaryDirectory(prefix="skep-bench-", dir="/var/tmp") as folder, RegistryServer(Path(folder) / "registry") as registry:
        print(f"{'milliseconds':38} {'pull':>20} {'limit':>20} {'ratio':>6} {'again':>18}")
        for name, build in IMAGES.items():
            built = build()
            push_image(registry.url, "bench", "1", built)
            pulls, limits, agains = [], [], []
            for _ in range(options.reps):
                root = Path(folder) / "data"
                images = OciImages(root, clock=SystemClock())
                pulls.append(timed(lambda: asyncio.run(images.pull(f"{registry.address}/bench:1"))))  # noqa: B023
                agains.append(timed(lambda: asyncio.run(images.pull(f"{registry.address}/bench:1"))))  # noqa: B023
                limits.append(timed(lambda: bare(registry.url, built, Path(folder) / "bare")))  # noqa: B023
                shutil.rmtree(Path(folder) / "bare")
                if len(pulls) < options.reps:
                    shutil.rmtree(root)
            ratio = statistics.median(pulls) / statistics.median(limits)
            print(f"{name:38} {shown(pulls):>20} {shown(limits):>20} {ratio:6.2f} {shown(agains):>18}", flush=True)
            more = others(Path(folder), f"{registry.address}/bench:1", options.reps)
            print("    " + ", ".join(f"{what} {shown(values).strip()}" for what, values in more.items()), flush=True)
            shutil.rmtree(Path(folder) / "data")
            rows.append(
                {"image": name, "pull_ms": pulls, "limit_ms": limits, "again_ms": agains, "ratio": ratio}
                | {f"{what}_ms": values for what, values in more.items()}
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
