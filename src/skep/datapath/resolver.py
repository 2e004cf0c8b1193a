"""The node's resolver, a process of its own: `python -m skep.datapath.resolver FOLDER [--resolvers FILE] [--ready FD] [--hold]`.

It answers at 127.0.0.11 in every container of the node, from what it was told last, whether or not skepd runs. Orders come by a socket in
the folder (skep.datapath.orders) and are answered when they are carried out. What it was told is kept beside the socket, in files that
are whole at any moment, so that another process begins where this one was killed: containers at once, the cluster's names after SAVE.

`--hold`: its starter is about to tell it what the files may not have: until then, but not for long, questions wait.

SIGTERM: another one has taken over; end when those who have asked are answered. See docs/discovery.md.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from skep.datapath import netns, orders, sockets
from skep.datapath.base import LocalState
from skep.datapath.names import Answer, View, look_up
from skep.datapath.serving import Place, World
from skep.datapath.tables import entries_of, plain
from skep.datapath.upstream import Upstream
from skep.errors import SkepError

log = logging.getLogger("skep.resolver")
SAVE = 1.0
"""Seconds from a change of the cluster's names to the file. It counts only when skepd is away too: it tells a new one everything."""
AT_ONCE = 32
"""Containers asked at a time in a check."""
HOLD = 2.0
"""Seconds for which one that follows another waits to be told what that one may not have had on file yet."""
LINGER, LAST_ANSWERS = 0.3, 5.0
"""Seconds: for which one that is replaced still listens, and then waits for other servers."""
T = TypeVar("T")


class Resolver:
    def __init__(self, folder: Path, world: World, build: str) -> None:
        self._build = build
        self._folder = folder
        self._world = world
        self._places: dict[str, Place] = {}
        self._version = 0
        self._saving: asyncio.TimerHandle | None = None
        self._mending = False
        self._patience = LAST_ANSWERS
        self.ended = asyncio.Event()

    # -- what is kept

    def load(self, hold: bool = False) -> None:
        """From the files. What cannot be read is as if it were not there: skepd tells everything again when it finds us. `hold`: answer
        nobody until it has, for HOLD at most."""
        self._world.holding = hold
        (self._folder / orders.SANDBOXES).mkdir(exist_ok=True)
        state = _read(self._folder / orders.STATE, orders.State)
        if state is not None:
            self._version = state.version
            self._world.facts.change(state.items)
        local = _read(self._folder / orders.LOCAL, LocalState)
        if local is not None:
            self._world.facts.change_local(local)
        for file in list((self._folder / orders.SANDBOXES).iterdir()):
            # one that was being written when its writer was killed has a name with a dot
            spec = _read(file, orders.Serve) if not file.name.startswith(".") else None
            if spec is None or not netns.pinned(Path(spec.path)):
                file.unlink(missing_ok=True)
                continue
            try:
                self._places[spec.id] = Place(self._world, spec)
            except (OSError, SkepError) as e:
                log.warning("%s: %s", spec.id, e)
        if hold:
            asyncio.get_running_loop().call_later(HOLD, self._answer)

    def _answer(self) -> None:
        """Those who wait since `load`, and all others from now on."""
        if self._world.holding:
            self._world.holding = False
            for place in self._places.values():
                place.listen()

    def _save_soon(self) -> None:
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE, self._save)

    def _save(self) -> None:
        self._saving = None
        state = orders.State(version=self._version, items=tuple(self._world.facts.items()))
        try:
            _write(self._folder / orders.STATE, state)
        except OSError as e:
            log.warning("%s", e)

    def _file(self, sandbox_id: str) -> Path:
        if not sandbox_id or "/" in sandbox_id or sandbox_id.startswith("."):
            raise SkepError(f"sandbox id {sandbox_id!r}: must be a plain file name")
        return self._folder / orders.SANDBOXES / sandbox_id

    # -- orders

    async def listen(self, stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One who gives orders, until he lets go."""
        try:
            with suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    size = orders.LENGTH.unpack(await stream.readexactly(orders.LENGTH.size))[0]
                    if size > orders.LONGEST:
                        return
                    done = await self._carry_out(await stream.readexactly(size))
                    writer.write(orders.packed(done))
                    await writer.drain()
        finally:
            writer.close()

    async def _carry_out(self, body: bytes) -> orders.Done:
        try:
            order: orders.Any = msgspec.msgpack.decode(body, type=orders.Any)
            said = await self._do(order)
        except (msgspec.MsgspecError, SkepError, OSError) as e:
            return orders.Done(identity=self._build, version=self._version, error=str(e) or type(e).__name__)
        served = tuple(p.spec for p in self._places.values()) if isinstance(order, orders.Hello) else ()
        return orders.Done(identity=self._build, version=self._version, said=tuple(said), served=served)

    async def _do(self, order: orders.Any) -> tuple[str, ...] | list[str]:
        facts = self._world.facts
        if isinstance(order, orders.Change):
            self._told(facts.change(order.put, order.drop, whole=order.whole))
            self._version = order.version
            self._save_soon()
            self._answer()
        elif isinstance(order, orders.Local):
            self._told(facts.change_local(order.state))
            _write(self._folder / orders.LOCAL, order.state)
        elif isinstance(order, orders.Serve):
            self._serve(order)
        elif isinstance(order, orders.Withdraw):
            if order.id in self._places:
                _write(self._file(order.id), self._places[order.id].withdraw(order.network_id))
        elif isinstance(order, orders.Forget):
            self._forget(order.id)
            # cancelled tasks let go of their sockets when the loop has gone round
            await asyncio.sleep(0)
        elif isinstance(order, orders.Check):
            return await self._check(order.mend)
        elif isinstance(order, orders.Resolve):
            found = look_up(facts.tables, View(networks=(order.network_id,)), plain(order.name))
            return tuple(x for x in (*found.addresses, found.pointer) if x) if isinstance(found, Answer) else ()
        elif isinstance(order, orders.Entries):
            table = facts.tables.get(order.network_id)
            return entries_of(table) if table is not None else ()
        elif isinstance(order, orders.Stop):
            if order.clean:
                for place in self._places.values():
                    with suppress(OSError, SkepError):
                        sockets.remove_rules(place.spec.path)
            self._patience = 0
            self.ended.set()
        return ()

    def _told(self, touched: set[str]) -> None:
        for place in self._places.values():
            place.tables_changed(touched)

    def _serve(self, spec: orders.Serve) -> None:
        file = self._file(spec.id)
        known = self._places.get(spec.id)
        if known is not None and known.alive and known.spec.path == spec.path:
            known.replace(spec)
        else:
            if known is not None:
                self._forget(spec.id)
            self._places[spec.id] = Place(self._world, spec)
        _write(file, spec)

    def _forget(self, sandbox_id: str) -> None:
        place = self._places.pop(sandbox_id, None)
        if place is not None:
            place.close()
        self._file(sandbox_id).unlink(missing_ok=True)

    async def _check(self, mend: bool) -> list[str]:
        """Each container asked as it would ask itself; a few at a time, so that nobody else waits."""
        if self._mending:
            return []
        said: list[str] = []
        self._mending = True
        try:
            places = list(self._places.values())
            for start in range(0, len(places), AT_ONCE):
                said += await asyncio.gather(*(self._check_one(place, mend) for place in places[start : start + AT_ONCE]))
        finally:
            self._mending = False
        return [sentence for sentence in said if sentence]

    async def _check_one(self, place: Place, mend: bool) -> str:
        id = place.spec.id
        if not place.alive:
            if self._places.get(id) is place:
                self._forget(id)
            return f"sandbox {id} is gone: names are not resolved in it any more"
        way = await place.probe()
        if not way or self._places.get(id) is not place:
            return ""
        if not mend:
            return f"names do not resolve over {way} in sandbox {id}"
        try:
            place.reopen()
            left = await place.probe()
        except (OSError, SkepError) as e:
            left = str(e)
        return f"names did not resolve over {way} in sandbox {id}: " + (f"and still do not ({left})" if left else "laid anew")

    # -- the end

    def replaced(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        asyncio.get_running_loop().call_later(LINGER, self.ended.set)

    async def end(self) -> None:
        if self._saving is not None:
            self._saving.cancel()
            self._save()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                await asyncio.gather(*(place.let_finish() for place in self._places.values()))
        for place in self._places.values():
            place.close()


def _write(file: Path, what: msgspec.Struct) -> None:
    temporary = file.parent / f".{file.name}.{os.getpid()}"
    temporary.write_bytes(msgspec.msgpack.encode(what))
    os.replace(temporary, file)


def _read(file: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.msgpack.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as e:
        log.warning("%s: %s", file, e)
        return None


async def _listening(folder: Path, heard: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> asyncio.Server:
    """The socket takes its name when it is there, and the name from one that was there before."""
    temporary = folder / f".{orders.SOCKET}.{os.getpid()}"
    old = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(heard, str(temporary), backlog=16)
    finally:
        os.umask(old)
    os.replace(temporary, folder / orders.SOCKET)
    return server


async def run(folder: Path, resolvers: Path, build: str, ready: int, hold: bool = False) -> None:
    async with asyncio.TaskGroup() as group:
        resolver = Resolver(folder, World(Upstream(resolvers), group), build)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, resolver.replaced)
        resolver.load(hold)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50000, 50, 1000)
        server = await _listening(folder, resolver.listen)
        if ready >= 0:
            os.write(ready, b"+")
            os.close(ready)
        await resolver.ended.wait()
        server.close()
        await resolver.end()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="skep-resolver")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resolvers", type=Path, default=Path("/etc/resolv.conf"))
    parser.add_argument("--build", default="")
    parser.add_argument("--ready", type=int, default=-1)
    parser.add_argument("--hold", action="store_true")
    asked: Any = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(run(asked.folder, asked.resolvers, asked.build or orders.identity(), asked.ready, asked.hold))


if __name__ == "__main__":
    main()
