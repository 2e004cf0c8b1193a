"""`docker run` and `docker exec`, through the real docker command: skepd, dockerd and bare crun, in turns within each repetition.

    sudo .venv/bin/python bench/run.py [--reps 10] [--dockerd FILE] [--json FILE]

ps              `docker ps -q`: what the command itself costs, in all that follows
run --rm        `docker run --rm IMAGE true`, on the default network; then on none, and on a user network with a published port
run -d          `docker run -d IMAGE sleep`, the same
exec            `docker exec CONTAINER true`
stop, rm        `docker stop -t 0`, `docker rm`; rm -f of one that runs
create ... wait the same steps asked for over the socket, without the command: where the milliseconds go
bare crun       `crun run`, `crun run -d`, `crun exec`, `crun delete` with an overlay root and the compiled seccomp filter: no docker
                command, no network, nobody who keeps the exit code or the log

Milliseconds; the ratio says how many times faster skepd is than dockerd. The image is there. `cpu` is what the daemons (with containerd and
its shims, conmon, and the runtime while it starts) use of it.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Callable

import containers
from engine_fixture import Bench, config, make_rootfs
from tables import Table, timed

import peers
from skep.engine.base import ContainerConfig
from skep.engine.oci import kernel

IMAGE = f"{peers.REGISTRY}/box:1"
PORTS = itertools.count(20000)


class Ground(Bench):
    """The bare runtime's places, below the folder that is cleared."""

    def __init__(self, ground: peers.Ground) -> None:
        self.folder = ground.folder / "bare"
        self.folder.mkdir()
        self.cgroup = f"/{ground.name}-bare"
        self.layers = [str(make_rootfs(self.folder))]


class Floor(containers.Bare):
    """What the runtime alone costs: overlay mounted, config.json written, `crun run`."""

    def attached(self, made: ContainerConfig) -> None:
        self._bundle(made)
        self._run("run", "--bundle", str(self._root / made.id), made.id)
        self.clear(made)

    def detached(self, made: ContainerConfig) -> None:
        self._bundle(made)
        self._run("run", "-d", "--bundle", str(self._root / made.id), made.id)

    def exec(self, made: ContainerConfig) -> None:
        self._run("exec", made.id, "true")

    def delete(self, made: ContainerConfig) -> None:
        self._run("delete", "--force", made.id)
        self.clear(made)

    def clear(self, made: ContainerConfig) -> None:
        kernel.umount(str(self._root / made.id / "rootfs"))
        for root in (self._root, self._disk):
            shutil.rmtree(root / made.id)


def floor_of(bare: Floor, table: Table) -> None:
    short, long = config("true", limits=containers.LIMITS), containers.wanted()
    for row, work in (
        ("run --rm, no network", lambda: bare.attached(short)),
        ("run -d, no network", lambda: bare.detached(long)),
        ("exec", lambda: bare.exec(long)),
        ("rm -f, running", lambda: bare.delete(long)),
    ):
        table.add(row, "bare crun", bare._pool.submit(timed, work).result())


class Meter:
    def __init__(self, peer: peers.Peer, wall: Table, cpu: Table) -> None:
        self._peer, self._wall, self._cpu = peer, wall, cpu

    def __call__(self, row: str, *argv: str) -> str:
        before, begun = self._peer.group.cpu(), time.perf_counter()
        said = self._peer.docker(*argv)
        self._wall.add(row, self._peer.name, time.perf_counter() - begun)
        self._cpu.add(row, self._peer.name, self._peer.group.cpu() - before)
        return said

    def step(self, row: str, work: Callable[[], object]) -> None:
        self._wall.add(row, self._peer.name, timed(work))


def commands(peer: peers.Peer, measure: Meter) -> None:
    measure("ps", "ps", "-q")
    user = ("--network", "user", "-p")
    measure("run --rm", "run", "--rm", IMAGE, "true")
    measure("run --rm, no network", "run", "--rm", "--network", "none", IMAGE, "true")
    measure("run --rm, user network, -p", "run", "--rm", *user, f"{next(PORTS)}:80", IMAGE, "true")
    one = measure("run -d", "run", "-d", IMAGE, "sleep", "100000")
    two = measure("run -d, no network", "run", "-d", "--network", "none", IMAGE, "sleep", "100000")
    three = measure("run -d, user network, -p", "run", "-d", *user, f"{next(PORTS)}:80", IMAGE, "sleep", "100000")
    measure("exec", "exec", one, "true")
    measure("exec, user network", "exec", three, "true")
    measure("stop -t 0", "stop", "-t", "0", one)
    measure("rm", "rm", one)
    measure("rm -f, running", "rm", "-f", two)
    measure("rm -f, user network, -p", "rm", "-f", three)


def steps(peer: peers.Peer, measure: Meter) -> None:
    """What `docker run` and `docker exec` ask for, one after the other."""
    found: dict[str, str] = {}
    body = {"Image": IMAGE, "Cmd": ["sleep", "100000"], "NetworkingConfig": {}, "HostConfig": {"NetworkMode": "user"}}

    def create() -> None:
        found["id"] = peer.api("POST", "/containers/create", body)["Id"]

    def execute() -> None:
        exec_id = peer.api("POST", f"/containers/{found['id']}/exec", {"Cmd": ["true"], "AttachStdout": True})["Id"]
        peer.api_raw("POST", f"/exec/{exec_id}/start", {"Detach": False})

    measure.step("  create", create)
    measure.step("  start", lambda: peer.api("POST", f"/containers/{found['id']}/start"))
    measure.step("  exec", execute)
    measure.step("  kill", lambda: peer.api("POST", f"/containers/{found['id']}/kill"))
    measure.step("  wait", lambda: peer.api("POST", f"/containers/{found['id']}/wait"))
    measure.step("  remove", lambda: peer.api("DELETE", f"/containers/{found['id']}"))


def main() -> None:
    options = peers.parsed(peers.arguments(__doc__, reps=10))
    wall, cpu = Table("ms"), Table("ms of CPU, of the daemons")
    with peers.stage(options) as ground:
        for peer in ground.peers:
            peer.docker("pull", "-q", IMAGE)
            peer.docker("network", "create", "user")
            peer.docker("run", "--rm", "--network", "user", "-p", f"{next(PORTS)}:80", IMAGE, "true")
        bare = Floor("crun", Ground(ground))
        try:
            for _ in range(options.reps):
                for peer in ground.peers:
                    measure = Meter(peer, wall, cpu)
                    commands(peer, measure)
                    steps(peer, measure)
                floor_of(bare, wall)
        finally:
            asyncio.run(bare.close())
        wall.show([*(peer.name for peer in ground.peers), "bare crun"])
        cpu.show([peer.name for peer in ground.peers])
    peers.finish(options, wall, cpu)


if __name__ == "__main__":
    main()
