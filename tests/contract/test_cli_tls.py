"""skep's command line over TCP with mutual TLS: the input's end is told, and all of the output comes back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from test_tls import BIG, Served, served


async def skep(at: Served, *words: str, stdin: bytes = b"", certificates: Path | None = None) -> tuple[int, bytes, bytes]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(at.folder),
        "SKEP_HOST": f"tcp://localhost:{at.port}",
        "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": str(certificates or at.folder),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "skep.cli.main",
        *words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out, err


def test_exec_over_tls() -> None:
    async def run() -> None:
        async with asyncio.timeout(60), served() as at:
            assert await skep(at, "exec", "c1", "hostname") == (0, b"5a11d67b2fb3\n", b"")
            assert await skep(at, "exec", "c1", "sh") == (4, b"out\n", b"err\n")
            assert await skep(at, "exec", "-i", "c1", "cat", stdin=BIG) == (0, BIG, b"")
            assert (await skep(at, "exec", "-i", "c1", "true", stdin=BIG))[0] == 0
            assert await skep(at, "logs", "c1") == (0, b"line1\n", b"line2\n")

    asyncio.run(run())


def test_a_strange_server_is_not_talked_to(tmp_path: Path) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), served() as at, served() as other:
            code, _, err = await skep(at, "ps", certificates=other.folder)
            assert (code, b"Cannot connect to the skep daemon" in err, b"Traceback" in err) == (1, True, False)

    asyncio.run(run())
