"""A name server that does not answer, or slowly: how long a registry's name is waited for, and what is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

# two servers and two domains to search: the system's resolver alone would be silent for 60 seconds
SCRIPT = """
import asyncio, socket, sys, threading, time
from pathlib import Path
sys.path.insert(0, "HERE")
from image_world import Shelf, images, server, small
from skep.errors import SkepError

names = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for number, one in enumerate(names):
    one.bind((f"127.0.0.{1 + number}", 53))

def speak(one):
    while True:
        question, asker = one.recvfrom(4096)
        if b"\\4slow\\4test\\0" not in question:
            continue
        end = question.index(b"\\0", 12) + 5
        wanted = question[end - 4 : end - 2] == b"\\0\\1"
        time.sleep(1)
        header = question[:2] + b"\\x81\\x80\\0\\1" + (b"\\0\\1" if wanted else b"\\0\\0") + b"\\0\\0\\0\\0"
        record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4" + bytes([127, 0, 0, 1])
        one.sendto(header + question[12:end] + (record if wanted else b""), asker)

class Slow(Shelf):
    async def answer(self, request):
        if request.path == "/v2/":
            await asyncio.sleep(7)
        return await super().answer(request)

async def main():
    began = time.monotonic()
    try:
        await images(Path("FOLDER/a"), insecure=("reg.silent",)).resolve("reg.silent/a/b")
    except SkepError as error:
        print(error.message)
    print(time.monotonic() - began < 25)
    async with server(Slow(small())) as address:
        name = "slow.test:" + address.rpartition(":")[2]
        descriptor, _ = await images(Path("FOLDER/b"), insecure=(name,)).resolve(name + "/a/b")
        print(descriptor["digest"][:7])

for one in names:
    threading.Thread(target=speak, args=(one,), daemon=True).start()
asyncio.run(main())
"""


def test_a_name_server_that_is_silent_costs_seconds_and_one_that_is_slow_nothing(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\nsearch one.silent two.silent\n")
    (tmp_path / "main.py").write_text(SCRIPT.replace("HERE", str(Path(__file__).parent)).replace("FOLDER", str(tmp_path)))
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    inside = (
        "ip link set lo up; mount --bind $1/resolv.conf /etc/resolv.conf; "
        "if [ -e /etc/nsswitch.conf ]; then mount --bind $1/nsswitch.conf /etc/nsswitch.conf; fi; exec $2 $1/main.py"
    )
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    done = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-ec", inside, "sh", str(tmp_path), sys.executable],
        capture_output=True,
        text=True,
        timeout=70,
        check=False,
        env=environment,
    )
    said = 'Get "http://reg.silent/v2/": dial tcp: lookup reg.silent: i/o timeout'
    assert done.stdout.splitlines() == [said, "True", "sha256:"], done.stderr
