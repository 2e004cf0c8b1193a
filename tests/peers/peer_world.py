"""A whole skepd for other projects' tests: the real daemon in a network and a mount namespace of its own, on its own data and run roots,
with a registry beside it that stands in for Docker Hub. Everything is gone afterwards, whatever happened.

`python peer_world.py FOLDER` is the registry with its images, run inside.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from skep.engine.oci import bundle
from skep.local.build import Built, Entry, directory, image, layer, link, program, push_image, text
from skep.local.images import base_files
from skep.local.registry import RegistryServer, find_tool

CACHE = Path(__file__).parents[2] / ".cache/peers"
"""Where tools/peers puts what it fetches."""
MIRROR = 5999
ADDRESS = "192.0.2.1"
TESTS_WITHIN = 300
READY_WITHIN = 60.0
"""Seconds."""
_PYTHON = "/usr/bin/python3"


def _libraries(binary: str) -> dict[str, Entry]:
    """What the dynamic loader needs for this program, under the paths at which it looks."""
    told = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    return {path.lstrip("/"): program(Path(path).read_bytes()) for path in re.findall(r"(/\S+) \(0x", told)}


def python_image(release: str) -> Built:
    """Stands in for `python:RELEASE-alpine`: this host's Python, the plain modules of its standard library, busybox."""
    binary = Path(_PYTHON).resolve()
    said = subprocess.run(
        [_PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"], capture_output=True, text=True, check=True
    )
    library = Path(said.stdout.strip())
    files = {str(path).lstrip("/"): text(path.read_text()) for path in library.glob("*.py")}
    for package in ("collections", "encodings", "importlib", "re"):
        files |= {str(path).lstrip("/"): text(path.read_text()) for path in (library / package).rglob("*.py")}
    files |= {str(library / "lib-dynload/.keep").lstrip("/"): text("")}
    files |= {
        str(binary).lstrip("/"): program(binary.read_bytes()),
        "usr/local/bin/python": link(str(binary)),
        "etc/release": text(release),
    }
    files |= _libraries(str(binary))
    environment = ("PATH=/usr/local/bin:/usr/bin:/bin", f"PYTHON_VERSION={release}", "LANG=C.UTF-8")
    return image([layer(base_files()), layer(files)], cmd=["python3"], env=environment)


def registry_image() -> Built:
    """Stands in for `registry:2`: Debian's docker-registry with the official image's configuration."""
    binary = str(find_tool("docker-registry"))
    config = "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: /var/lib/registry\nhttp:\n  addr: :5000\n"
    files = {"bin/registry": program(Path(binary).read_bytes()), "etc/docker/registry/config.yml": text(config)} | _libraries(binary)
    files |= {"var/lib/registry": directory()}
    command = ["/etc/docker/registry/config.yml"]
    return image([layer(base_files()), layer(files)], entrypoint=["registry", "serve"], cmd=command, ports=["5000/tcp"])


def busybox_image() -> Built:
    return image([layer(base_files())], cmd=["sh"])


def build_hub(folder: Path) -> None:
    """What a registry with these images keeps on disk."""
    with RegistryServer(folder) as registry:
        for name, tag, built in (
            ("library/python", "3.13-alpine", python_image("3.13")),
            ("library/python", "3.14-alpine", python_image("3.14")),
            ("library/python", "latest", python_image("3.13")),
            ("library/registry", "2", registry_image()),
            ("library/busybox", "latest", busybox_image()),
        ):
            push_image(registry.url, name, tag, built)


def serve_hub(folder: Path) -> None:
    """The registry, until killed."""
    with RegistryServer(folder / "hub", port=MIRROR):
        (folder / "hub-ready").touch()
        signal.pause()


class PeerWorld:
    """`inside` is a command prefix that puts a program on the daemon's host, so that 127.0.0.1 is the daemon's."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"skt{os.getpid()}-", dir="/tmp"))
        self.socket = self.folder / "s.sock"
        self.log = self.folder / "log"
        self._processes: list[subprocess.Popen[bytes]] = []
        # the address is what `swarm init` advertises
        script = (
            "ip link set lo up && ip link add up0 type veth peer name up1 && ip link set up1 up && "
            f"ip addr add {ADDRESS}/24 dev up0 && ip link set up0 up && "
            "ip route add default via 192.0.2.254 && echo && exec sleep infinity"
        )
        self.holder = subprocess.Popen(["unshare", "-n", "-m", "sh", "-ec", script], stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        self.holder.stdout.readline()
        self.holder.stdout.close()

    def inside(self, *argv: str) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-m", "--", *argv]

    def start(self, *settings: str) -> None:
        """The daemon; returns when it answers."""
        command = [sys.executable, "-m", "skep.daemon", "--data-root", f"{self.folder}/d", "--run-root", f"{self.folder}/r"]
        command += ["--host", f"unix://{self.socket}", "--docker-socket", "", "--cgroup-parent", f"/{self.folder.name}"]
        command += ["--hostname", "peer", "--image-gc-high", "100", *settings]
        self._spawn(command, self.log)
        self._until(self.answers)

    def start_hub(self, built: Path) -> None:
        shutil.copytree(built, self.folder / "hub")
        self._spawn([sys.executable, __file__, str(self.folder)], self.folder / "hub.log")
        self._until((self.folder / "hub-ready").exists)

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/_ping")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def ask(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None, seconds: float = 60
    ) -> tuple[int, bytes]:
        """(status, body)."""
        connection = http.client.HTTPConnection("docker", timeout=seconds)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(seconds)
        with contextlib.closing(connection):
            connection.sock.connect(str(self.socket))
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def clear(self) -> None:
        """By pid: the daemon first, so that it starts nothing new, then all that carry this world's name, then what the kernel keeps."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()
        while left := self.left():
            self._thaw()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.holder.kill()
        self.holder.wait()
        for path in _mounts_below(str(self.folder)):
            subprocess.run(["umount", "-l", path], capture_output=True)
        bundle.remove_cgroups(self.folder.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _thaw(self) -> None:
        """What is paused takes no signal."""
        for hierarchy, file, word in (("freezer", "freezer.state", "THAWED"), ("", "cgroup.freeze", "0")):
            for path in Path("/sys/fs/cgroup", hierarchy, self.folder.name).rglob(file):
                with contextlib.suppress(OSError):
                    path.write_text(word)

    def left(self) -> list[int]:
        found = []
        for pid in os.listdir("/proc"):
            if pid.isdigit() and int(pid) not in (os.getpid(), self.holder.pid):
                with contextlib.suppress(OSError):
                    told = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") + Path(f"/proc/{pid}/cgroup").read_text()
                    if self.folder.name in told:
                        found.append(int(pid))
        return found

    def _spawn(self, command: list[str], log: Path) -> None:
        with log.open("ab") as to:
            self._processes.append(subprocess.Popen(self.inside(*command), stdin=subprocess.DEVNULL, stdout=to, stderr=to))

    def _until(self, holds: object) -> None:
        end = time.monotonic() + READY_WITHIN
        while not holds():  # type: ignore[operator]
            told = {path.name: path.read_text(errors="replace")[-3000:] for path in self.folder.glob("*.log")}
            assert self._processes[-1].poll() is None, f"it ended: {self.log.read_text() if self.log.exists() else ''} {told}"
            assert time.monotonic() < end, f"not ready: {told}"
            time.sleep(0.02)


def _mounts_below(folder: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted((line.split()[4] for line in lines if line.split()[4].startswith(folder + "/")), reverse=True)


@contextlib.contextmanager
def peer_world(hub: Path) -> Iterator[PeerWorld]:
    """`hub`: what build_hub has built."""
    made = PeerWorld()
    try:
        made.start_hub(hub)
        made.start("--registry-mirror", f"http://127.0.0.1:{MIRROR}")
        yield made
    finally:
        made.clear()


def peers_pytest(world: PeerWorld, folder: Path, environment: dict[str, str], *arguments: str) -> str:
    """What pytest printed, run in `folder` on the daemon's host, with the Python that tools/peers has made."""
    assert (CACHE / ".done").exists(), "other projects' tests are not here: run tools/peers"
    home = world.folder / "home"
    home.mkdir()
    environment = environment | {
        "PATH": f"{CACHE / 'venv/bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DOCKER_HOST": f"unix://{world.socket}",
    }
    # nsenter leaves the working directory
    command = world.inside("env", f"--chdir={folder}", str(CACHE / "venv/bin/python"), "-m", "pytest", "-q", *arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TESTS_WITHIN, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


if __name__ == "__main__":
    serve_hub(Path(sys.argv[1]))
