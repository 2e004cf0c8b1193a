"""Exec and attach: streams, exit codes, terminals."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest
from engine_fixture import RUNTIMES, config, running_engine, started

from skep.engine.base import Exec, ExecConfig, Streams
from skep.errors import Conflict, Invalid, SkepError

pytestmark = pytest.mark.root


async def collect(streams: Streams) -> dict[int, bytes]:
    out = {1: b"", 2: b""}
    async for stream, data in streams.output():
        out[stream] += data
    await streams.close()
    return out


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exec_runs_in_the_container(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            id = await started(engine, "sleep", "600", env=("A=1",), user="web", cwd="/tmp")
            process = await engine.exec(id, ExecConfig(args=("sh", "-c", "echo $A$B; pwd; id -u; echo err >&2; exit 5"), env=("B=2",)))
            out = await collect(process.streams)
            assert (out[1], out[2], await process.wait()) == (b"12\n/tmp\n101\n", b"err\n", 5)
            process = await engine.exec(
                id, ExecConfig(args=("sh", "-c", "pwd; id -u; grep -E 'Secc|CapBnd' /proc/self/status"), user="0", cwd="/etc")
            )
            text = (await collect(process.streams))[1].decode()
            assert text.splitlines()[:2] == ["/etc", "0"]
            assert "CapBnd:\t00000000a80425fb" in text and "Seccomp:\t2" in text, "an exec is in the same cage"
            process = await engine.exec(id, ExecConfig(args=("sh", "-c", "kill -9 $$")))
            await collect(process.streams)
            assert await process.wait() == 137

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("tty", [False, True])
def test_exec_of_what_cannot_run(runtime: str, tty: bool) -> None:
    """The reason comes as output, the code is 127 or 126, as docker exec shows it."""

    async def main() -> None:
        async with running_engine(runtime) as engine:
            id = await started(engine, "sleep", "600")
            for command, cwd, code, words in (
                ("nosuch", "", 127, 'exec: "nosuch": executable file not found in $PATH'),
                ("/no/such", "", 127, 'exec: "/no/such": stat /no/such: no such file or directory'),
                ("./x", "/home", 127, 'exec: "./x": stat ./x: no such file or directory'),
                ("/etc", "", 126, 'exec: "/etc": permission denied'),
                ("/etc/passwd", "", 126, 'exec: "/etc/passwd": permission denied'),
                ("true", "/no/such", 127, 'chdir to cwd ("/no/such") set in config.json failed: no such file or directory'),
                ("true", "/etc/passwd", 126, 'chdir to cwd ("/etc/passwd") set in config.json failed: not a directory'),
            ):
                process = await engine.exec(id, ExecConfig(args=(command,), tty=tty, cwd=cwd))
                out = await collect(process.streams)
                text = f"OCI runtime exec failed: exec failed: unable to start container process: {words}: unknown\r\n"
                assert (out[1] + out[2]).decode() == text
                assert await process.wait() == code
            with pytest.raises(Invalid, match="unable to find user nosuch: no matching entries in passwd file"):
                await engine.exec(id, ExecConfig(args=("true",), user="nosuch", tty=tty))
            await engine.kill(id)
            await engine.wait(id)
            with pytest.raises(Conflict, match=f"container {id} is not running"):
                await engine.exec(id, ExecConfig(args=("true",)))

    asyncio.run(main())


def test_bytes_through_exec_come_back_the_same() -> None:
    """5 MB in and out, more than any buffer on the way."""

    async def main() -> None:
        async with running_engine() as engine:
            id = await started(engine, "sleep", "600")
            data = hashlib.shake_256(b"skep").digest(5_000_000)
            process = await engine.exec(id, ExecConfig(args=("cat",), stdin=True))
            got: dict[int, bytes] = {}
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                reading = group.create_task(collect(process.streams))
                await process.streams.write(data)
                await process.streams.close_stdin()
                got = await reading
            assert got[1] == data
            assert await process.wait() == 0

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exec_on_a_terminal(runtime: str) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            id = await started(engine, "sleep", "600")
            script = 'until [ "$(stty size)" = "40 132" ]; do sleep 0.02; done; echo resized; tty; echo $TERM; read x; echo got-$x; exit 9'
            process = await engine.exec(id, ExecConfig(args=("sh", "-c", script), tty=True, stdin=True, rows=24, columns=80))
            for columns in (100, 110, 120, 132):
                await process.resize(40, columns)
            await process.streams.write(b"word\n")
            async with asyncio.timeout(20):
                text = (await collect(process.streams))[1].decode()
                assert await process.wait() == 9
            assert text.replace("word\r\n", "", 1) == "resized\r\n/dev/pts/0\r\nxterm\r\ngot-word\r\n"

    asyncio.run(main())


def test_an_exec_can_be_killed_and_its_child_does_not_hold_the_output() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            id = await started(engine, "sleep", "600")
            process: Exec = await engine.exec(id, ExecConfig(args=("sleep", "500")))
            async with asyncio.timeout(20):
                while not process.pid:  # noqa: ASYNC110 - the runtime writes it to a file
                    await asyncio.sleep(0.01)
                process.kill()
                assert await process.wait() == 137
                process = await engine.exec(id, ExecConfig(args=("sh", "-c", "sleep 400 & echo done")))
                assert (await collect(process.streams))[1] == b"done\n"

    asyncio.run(main())


def test_attached_before_the_start_nothing_is_lost() -> None:
    """Two watchers get all of the output of a process that ends at once."""

    async def main() -> None:
        async with running_engine() as engine:
            made = config("sh", "-c", "seq 1 20000; echo err >&2")
            await engine.create(made)
            watchers = [await engine.attach(made.id) for _ in range(2)]
            async with asyncio.timeout(30), asyncio.TaskGroup() as group:
                reading = [group.create_task(collect(streams)) for streams in watchers]
                await engine.start(made.id)
            expected = b"".join(b"%d\n" % number for number in range(1, 20001))
            for done in reading:
                assert done.result() == {1: expected, 2: b"err\n"}

    asyncio.run(main())


def test_attached_input_and_its_end() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            made = config("sh", "-c", "cat | wc -c", stdin=True, stdin_once=True)
            await engine.create(made)
            streams = await engine.attach(made.id)
            await engine.start(made.id)
            async with asyncio.timeout(30):
                await streams.write(b"x" * 1_000_000)
                await streams.close_stdin()
                assert (await collect(streams))[1] == b"1000000\n"
            with pytest.raises(SkepError):
                await streams.write(b"late")

    asyncio.run(main())


def test_attach_to_a_terminal_later_and_again() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            script = 'while read w; do until [ "$(stty size)" = "$w" ]; do sleep 0.02; done; echo "is $w"; done'
            id = await started(engine, "sh", "-c", script, tty=True, stdin=True)
            for turn in range(2):
                streams = await engine.attach(id)
                await engine.resize(id, 30, 100 + turn)
                await streams.write(b"30 %d\n" % (100 + turn))
                seen = b""
                async with asyncio.timeout(20):
                    async for _, data in streams.output():
                        seen += data
                        if b"is 30 %d\r\n" % (100 + turn) in seen:
                            break
                await streams.close()
            container = engine.get(id)
            assert container is not None and container.running

    asyncio.run(main())


def test_a_start_that_fails_ends_the_attached() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            made = config("nosuch")
            await engine.create(made)
            streams = await engine.attach(made.id)
            with pytest.raises(SkepError):
                await engine.start(made.id)
            async with asyncio.timeout(10):
                assert await collect(streams) == {1: b"", 2: b""}

    asyncio.run(main())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("tty", [False, True])
def test_exec_with_rights_of_its_own(runtime: str, tty: bool) -> None:
    async def main() -> None:
        async with running_engine(runtime) as engine:
            id = await started(engine, "sleep", "600", env=("A=1", "B=2"), user="web", capabilities_drop=("ALL",))
            script = "id -u; id -g; id -G; pwd; echo $A$B$C; grep -E 'CapEff|NoNewPrivs' /proc/self/status | cut -f2"
            if tty:
                script = f'until [ "$(stty size 2>&1)" = "31 97" ]; do sleep 0.02; done; {script}'
            for fields, expected in (
                ({}, ["101", "102", "102 200", "/", "12", "0" * 16]),
                ({"user": "0:300", "cwd": "/etc", "env": ("B=9", "C=3")}, ["0", "300", "300", "/etc", "193", "0" * 16]),
                ({"user": "root", "privileged": True}, ["0", "0", "0", "/", "12", ""]),
            ):
                wanted = ExecConfig(args=("sh", "-c", script), tty=tty, rows=31, columns=97, **fields)  # type: ignore[arg-type]
                process = await engine.exec(id, wanted)
                lines = (await collect(process.streams))[1].decode().replace("\r", "").splitlines()
                assert lines[:5] == expected[:5] and lines[6] == "0", lines
                assert lines[5] == expected[5] or (not expected[5] and bin(int(lines[5], 16)).count("1") > 30), lines
                assert await process.wait() == 0

    asyncio.run(main())


@pytest.mark.parametrize("tty", [False, True])
def test_an_exec_whose_caller_goes_while_it_is_made_leaves_nothing_open(tty: bool) -> None:
    """It runs on, as Docker's does, with more output than anybody keeps; then its descriptors and files are gone."""

    async def main() -> None:
        async with running_engine("auto") as engine:
            id = await started(engine, "sleep", "600")
            command = "head -c 3000000 /dev/zero; echo done > /tmp/said"
            process = await engine.exec(id, ExecConfig(args=("true",), tty=tty))
            await collect(process.streams)
            await process.wait()
            before = sorted(os.listdir("/proc/self/fd"))
            calling = asyncio.ensure_future(engine.exec(id, ExecConfig(args=("sh", "-c", command), tty=tty, stdin=True)))
            await asyncio.sleep(0)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            process = await engine.exec(id, ExecConfig(args=("sh", "-c", "until [ -s /tmp/said ]; do sleep 0.05; done")))
            async with asyncio.timeout(20):
                await process.wait()
            await process.streams.close()
            for _ in range(200):
                left = os.listdir(engine._folders.run / "x")
                if not left and sorted(os.listdir("/proc/self/fd")) == before:
                    break
                await asyncio.sleep(0.05)
            assert sorted(os.listdir("/proc/self/fd")) == before and not left

    asyncio.run(main())


def test_who_attaches_while_the_container_ends_hears_the_end() -> None:
    """The monitor takes its socket away before the end is known: a container that ends is no error."""

    async def main() -> None:
        async with running_engine() as engine:
            id = await started(engine, "sleep", "600")
            (engine._folders.bundle(id) / "attach").unlink()
            with pytest.raises(SkepError, match="monitor is gone"):
                await engine.attach(id)
            attaching = asyncio.ensure_future(engine.attach(id))
            await asyncio.sleep(0)
            await engine.kill(id)
            streams = await attaching
            assert await collect(streams) == {1: b"", 2: b""}

    asyncio.run(main())


def test_a_size_for_what_is_just_ending_is_a_conflict() -> None:
    async def main() -> None:
        async with running_engine() as engine:
            id = await started(engine, "sleep", "600", tty=True)
            control = engine._folders.bundle(id) / "ctl"
            control.unlink()
            with pytest.raises(Conflict, match="monitor is gone"):
                await engine.resize(id, 40, 80)
            os.mkfifo(control)  # and nobody reads
            with pytest.raises(Conflict, match="monitor is gone"):
                await engine.resize(id, 40, 80)

    asyncio.run(main())
