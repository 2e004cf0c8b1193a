"""What is done to a node in chaos, drawn from a seed: what users do, and what goes wrong. Each deed tells the model what follows from it.

An answer counts; without one (`Lost`: the daemon was killed) nothing is known of what was asked for.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import tarfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
from node_chaos_model import ENDS, PROGRAMS, Box
from node_chaos_world import IMAGES, PORT, ChaosWorld

IMAGE = f"127.0.0.1:{PORT}/app0:1"
MOST = 12
"""Containers at one time."""
PROPER = {200, 201, 204, 304, 403, 404, 409}
MEANT = ("port publishing needs a network that is not internal", "port is already allocated")
Deed = Callable[[], Awaitable[None]]


class Lost(Exception):
    """No answer."""


class Deeds:
    def __init__(self, world: ChaosWorld, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.boxes: list[Box] = []
        self.networks: dict[str, bool | None] = {}
        """Name -> is it there? None: not known."""
        self.volumes: dict[str, bool | None] = {}
        self.images: dict[str, bool | None] = {}
        self.busy: set[str] = set()
        self.said: list[str] = []
        """What happened, in order; shown when something is wrong."""
        self.wrong: list[str] = []
        """Answers that should not have been given."""
        self.rough = False
        """Things go wrong now: errors are answers too."""
        self.number = 0

    # asking

    async def ask(self, method: str, path: str, body: Any = None, *, data: bytes | None = None, raw: bool = False) -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(str(self.world.socket))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session,
                session.request(method, f"http://docker{path}", json=body, data=io.BytesIO(data) if data else None) as answer,
            ):
                got = await answer.read()
                status = answer.status
        except TimeoutError:
            self.wrong.append(f"{method} {path}: no answer in a minute")
            raise Lost from None
        except (aiohttp.ClientError, OSError):
            raise Lost from None
        try:
            found = got if raw and status < 300 else json.loads(got) if got else None
        except ValueError:
            found = got
        self.said.append(f"  {method} {path} -> {status}{f' {found}' if status >= 400 else ''}")
        if status not in PROPER and not self.rough and not any(text in str(found) for text in MEANT):
            self.wrong.append(f"{method} {path} {body or ''}: {status} {found}")
        return status, found

    def pick(self, wanted: Callable[[Box], Any] = lambda box: True) -> Box | None:
        """One that nobody else is at."""
        free = [box for box in self.boxes if box.exists and box.name not in self.busy and wanted(box)]
        if not free:
            return None
        box = self.rng.choice(free)
        self.busy.add(box.name)
        return box

    async def change(self, box: Box, method: str, path: str, body: Any = None) -> bool:
        """Was it done? When there is no answer, or an error while things go wrong, nothing is known of it."""
        try:
            status, _ = await self.ask(method, f"/containers/{box.id}{path}", body)
        except Lost:
            box.unsure()
            raise
        if status >= 500 or (self.rough and status >= 400):
            box.unsure()
        return status in (200, 201, 204)

    # containers

    async def run(self) -> None:
        if len(self.boxes) >= MOST:
            await self.remove()
            return
        rng, self.number = self.rng, self.number + 1
        program = rng.choice([*PROGRAMS, "stay", "stay", "trap"])
        policy = rng.choice(["", "", "always", "unless-stopped", "on-failure"])
        box = Box(
            name=f"c{self.number}", program=program, policy=policy, removes=not policy and rng.random() < 0.2, tty=rng.random() < 0.15
        )
        box.memory = 16 << 20 if program == "hungry" else rng.choice([0, 0, 64 << 20])
        network = rng.choice(["bridge", "bridge", "none", *(name for name, there in self.networks.items() if there)])
        box.networks = {network}
        volumes = [name for name in (f"v{rng.randrange(4)}",) if rng.random() < 0.4 and name not in self.busy]
        self.busy.update(volumes)
        host: dict[str, Any] = {
            "NetworkMode": network,
            "Memory": box.memory,
            "AutoRemove": box.removes,
            "Binds": [f"{name}:/v" for name in volumes],
        }
        host["RestartPolicy"] = {"Name": policy, "MaximumRetryCount": 2 if policy == "on-failure" else 0}
        body: dict[str, Any] = {
            "Image": IMAGE,
            "Cmd": ["sh", "-c", PROGRAMS[program]],
            "Tty": box.tty,
            "HostConfig": host,
            "StopTimeout": 1,
        }
        if rng.random() < 0.3:
            body["Volumes"] = {"/anonymous": {}}
        if rng.random() < 0.2:
            body["Healthcheck"] = {"Test": ["CMD", "true"], "Interval": 1_000_000_000}
        if rng.random() < 0.3 and network != "none":
            host["PortBindings"] = {"80/tcp": [{"HostPort": rng.choice(["", str(8000 + rng.randrange(20))])}]}
        if network not in ("bridge", "none") and rng.random() < 0.3:
            fixed = {"IPAMConfig": {"IPv4Address": f"10.77.{network[1:]}.{rng.randrange(100, 110)}"}}
            body["NetworkingConfig"] = {"EndpointsConfig": {network: fixed}}
        self.boxes.append(box)
        self.busy.add(box.name)
        for name in volumes:
            self.volumes[name] = True if self.volumes.get(name) else None
        try:
            status, found = await self.ask("POST", f"/containers/create?name={box.name}", body)
        except Lost:
            box.unsure()
            raise
        if status != 201:
            box.exists = False if not self.rough else None
            if box.exists is None:
                box.unsure()
            return
        box.id, box.exists, box.run = found["Id"], True, False
        for name in volumes:
            self.volumes[name] = True
        await asyncio.sleep(rng.choice([0, 0, 0.05]))
        await self.begin(box, "/start")

    async def begin(self, box: Box, path: str) -> None:
        if await self.change(box, "POST", path):
            box.started()
        elif box.run is not None:
            # an address, a port or a network that is not to be had: it stays as it was, or goes
            box.run = False
            if box.removes:
                box.exists = False
            box.codes = set()

    async def start(self) -> None:
        if (box := self.pick(lambda box: box.run is False)) is not None:
            await self.begin(box, "/start")

    async def restart(self) -> None:
        if (box := self.pick(lambda box: not box.removes)) is not None:
            await self.begin(box, "/restart?t=1")

    async def stop(self) -> None:
        if (box := self.pick(lambda box: box.run is not False)) is not None:
            before = box.run
            if await self.change(box, "POST", "/stop?t=1"):
                box.run = True
                box.ended(137, *((3,) if box.program == "trap" else ()), by_hand=True)
                if before is None:
                    box.codes = set()

    async def kill(self) -> None:
        box = self.pick(lambda box: box.run and box.program not in ENDS)
        if box is not None and await self.change(box, "POST", "/kill"):
            box.ended(137, by_hand=True)

    async def pause(self) -> None:
        if (box := self.pick(lambda box: box.run and box.program not in ENDS)) is not None:
            paused = box.paused
            if await self.change(box, "POST", "/unpause" if paused else "/pause") and paused is not None:
                box.paused = not paused

    async def rename(self) -> None:
        if (box := self.pick()) is not None:
            self.number += 1
            new, box.named = f"c{self.number}", False
            if await self.change(box, "POST", f"/rename?name={new}"):
                box.name, box.named = new, True

    async def update(self) -> None:
        if (box := self.pick(lambda box: box.program != "hungry" and box.memory)) is not None:
            memory = self.rng.choice([48, 96, 128]) << 20
            if await self.change(box, "POST", "/update", {"Memory": memory, "MemorySwap": 2 * memory}):
                box.memory = memory

    async def remove(self) -> None:
        if (box := self.pick()) is not None:
            try:
                status, _ = await self.ask("DELETE", f"/containers/{box.id}?force=1&v={self.rng.randrange(2)}")
            except Lost:
                box.exists = None
                box.unsure()
                raise
            box.exists = False if status == 204 else None
            if status != 204:
                box.unsure()

    async def prune(self) -> None:
        """Everything that does not run, also what has just ended."""
        try:
            status, found = await self.ask("POST", "/containers/prune")
        except Lost:
            status, found = 0, None
        gone = (found or {}).get("ContainersDeleted") or () if status == 200 else ()
        for box in self.boxes:
            if box.id in gone:
                box.exists = False
            elif status != 200 and box.run is not True:
                box.exists = None
                box.unsure()

    # inside them

    async def execute(self) -> None:
        box = self.pick(lambda box: box.run and box.program not in ENDS and not box.paused)
        if box is None:
            return
        command, detached, vanish = self.rng.choice(
            [("exit 5", False, False), ("sleep 0.5; exit 5", True, False), ("sleep 2", False, True), ("echo hello; exit 5", False, False)]
        )
        status, made = await self.ask("POST", f"/containers/{box.id}/exec", {"Cmd": ["sh", "-c", command], "AttachStdout": True})
        if status != 201:
            return
        going = self.ask("POST", f"/exec/{made['Id']}/start", {"Detach": detached, "Tty": False}, raw=True)
        if vanish:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await going
            return
        status, _ = await going
        if status == 200 and not detached:
            status, found = await self.ask("GET", f"/exec/{made['Id']}/json")
            if status == 200 and found["ExitCode"] != 5 and not self.rough:
                self.wrong.append(f"exec of `{command}` in {box.name}: {found}")

    async def copy(self) -> None:
        if (box := self.pick(lambda box: not box.removes)) is not None:
            content = self.rng.randbytes(2000)
            with io.BytesIO() as buffer:
                with tarfile.open(fileobj=buffer, mode="w") as tar:
                    member = tarfile.TarInfo("copied")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                archive = buffer.getvalue()
            status, _ = await self.ask("PUT", f"/containers/{box.id}/archive?path=/tmp", data=archive)
            if status == 200:
                status, found = await self.ask("GET", f"/containers/{box.id}/archive?path=/tmp/copied", raw=True)
                if status == 200 and content not in found:
                    self.wrong.append(f"{box.name}: what was copied in did not come out")

    async def follow(self) -> None:
        """A client that reads the log, or waits, and is gone at once."""
        if (box := self.pick()) is not None:
            path = self.rng.choice(["logs?follow=1&stdout=1&tail=3", "stats", "attach?stream=1&stdout=1", "wait"])
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await self.ask("GET" if path[0] in "ls" else "POST", f"/containers/{box.id}/{path}", raw=True)

    # networks, volumes, images

    async def network(self) -> None:
        name = f"n{self.rng.randrange(4)}"
        if name in self.busy:
            return
        self.busy.add(name)
        there, self.networks[name] = self.networks.get(name, False), None
        box = self.pick(lambda box: box.run and box.program not in ENDS and box.networks and box.networks != {"none"}) if there else None
        if box is not None and box.networks is not None:
            self.networks[name] = there
            known, box.networks = box.networks, None
            joined = name in known
            if await self._connect(box, name, joined):
                box.networks = known - {name} if joined else known | {name}
        elif there:
            status, _ = await self.ask("DELETE", f"/networks/{name}")
            self.networks[name] = False if status == 204 else there if status == 403 else None
        else:
            subnet = {"Config": [{"Subnet": f"10.77.{name[1:]}.0/24"}]}
            status, _ = await self.ask("POST", "/networks/create", {"Name": name, "IPAM": subnet, "Internal": self.rng.random() < 0.2})
            self.networks[name] = True if status == 201 else None

    async def _connect(self, box: Box, name: str, joined: bool) -> bool:
        try:
            status, _ = await self.ask("POST", f"/networks/{name}/{'disconnect' if joined else 'connect'}", {"Container": box.id})
        except Lost:
            box.networks = None
            raise
        return status == 200

    async def volume(self) -> None:
        name = f"v{self.rng.randrange(4)}"
        if name in self.busy:
            return
        self.busy.add(name)
        there, self.volumes[name] = self.volumes.get(name), None
        if there:
            status, _ = await self.ask("DELETE", f"/volumes/{name}")
            self.volumes[name] = False if status == 204 else True if status == 409 else None
        else:
            status, _ = await self.ask("POST", "/volumes/create", {"Name": name})
            self.volumes[name] = True if status == 201 else None

    async def image(self) -> None:
        name = f"127.0.0.1:{PORT}/app{self.rng.randrange(1, IMAGES)}"
        if name in self.busy:
            return
        self.busy.add(name)
        there, self.images[name] = self.images.get(name), None
        deed = self.rng.choice(["pull", "save", "remove", "remove"]) if there else "pull"
        if deed == "pull":
            status, said = await self.ask("POST", f"/images/create?fromImage={name}&tag=1", raw=True)
            self.images[name] = True if status == 200 and b'"error"' not in said else None
            if self.images[name] is None and not self.rough:
                self.wrong.append(f"pull of {name}: {said[-300:]}")
        elif deed == "save":
            self.images[name] = there
            status, saved = await self.ask("GET", f"/images/{name}:1/get", raw=True)
            if status == 200:
                await self.ask("POST", "/images/load", data=saved, raw=True)
        else:
            await self.ask("POST", f"/images/{name}:1/tag?repo=other{name[-1]}&tag=2")
            status, _ = await self.ask("DELETE", f"/images/other{name[-1]}:2")
            status, _ = await self.ask("DELETE", f"/images/{name}:1")
            self.images[name] = False if status == 200 else None

    def ordinary(self) -> list[Deed]:
        """Each as often as it stands here."""
        return [*[self.run] * 6, self.start, self.start, self.restart, self.stop, self.stop, self.kill, self.pause, self.pause, self.rename,
                self.update, *[self.remove] * 3, self.prune, *[self.execute] * 4, self.copy, *[self.follow] * 2, *[self.network] * 4,
                *[self.volume] * 2, *[self.image] * 2]  # fmt: skip
