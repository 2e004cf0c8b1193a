"""The sockets a server listens on: several at once, stale ones, and who may open them."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile

from skep.api.server import make_app, serve_unix
from skep.testing.api_client import Client, serving
from skep.testing.fake_context import FakeContext, StepClock


def context() -> FakeContext:
    return FakeContext(StepClock(), random.Random(1))


def test_one_application_on_two_sockets() -> None:
    async def run() -> None:
        world = context()
        app = make_app(world)
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("a.sock", "b.sock")]
            async with asyncio.TaskGroup() as group:
                serving_both = []
                for path in paths:
                    ready = asyncio.Event()
                    serving_both.append(group.create_task(serve_unix(app, path, ready=ready)))
                    await ready.wait()
                assert [os.stat(path).st_mode & 0o777 for path in paths] == [0o660, 0o660]
                for path in paths:
                    assert (await Client(path).ask("GET", "/_ping")).status == 200
                for task in serving_both:
                    task.cancel()
            assert os.listdir(folder) == []

    asyncio.run(run())


def test_a_stale_socket_is_replaced_and_a_served_one_is_not() -> None:
    async def scene(client: Client) -> None:
        try:
            await serve_unix(make_app(context()), client.path)
        except OSError as error:
            assert "another process serves this socket" in str(error)
        else:
            raise AssertionError("the socket was taken over")
        assert (await client.ask("GET", "/_ping")).status == 200

    async def run() -> None:
        async with serving(context()) as client:
            await scene(client)

    asyncio.run(run())


WATCHED = """
import os, stat, sys
from skep.api import server

def look(event, arguments):
    if event == "os.chmod" and isinstance(arguments[0], str):
        umask = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("Umask"))
        print(oct(stat.S_IMODE(os.stat(arguments[0]).st_mode)), umask)

os.umask(0)
sys.addaudithook(look)
server._listener(sys.argv[1], 0o660)
"""


def test_a_socket_is_never_open_to_others_and_other_threads_keep_their_umask() -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", WATCHED, f"{folder}/s"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0o600", "0000"]
