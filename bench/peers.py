"""Two peers side by side on this machine, for the programs here that speak to them through the docker command: skepd, and a dockerd where
one is given (`--dockerd FILE` or $SKEP_BENCH_DOCKERD; containerd, its shim, docker-proxy and tini are looked for beside it, see README.md).

    wire    a network namespace with a bridge and the registry (192.0.2.1:5000)
    peer    a network and a mount namespace for each daemon, on that bridge; its roots below one folder, its daemons in a cgroup
            (dockerd and the shims, skepd and the conmons: what CPU and memory are counted of), its containers in another

Everything is cleared by a process of its own that waits for the end of this one: also after kill -9. No rule, address or mount of the host
is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tables import Table

from skep.engine.oci import bundle, runtime
from skep.local import images as own_images
from skep.local.build import Built, image, layer, push_image
from skep.local.registry import find_tool

REGISTRY = "192.0.2.1:5000"
READY_WITHIN = 60.0
"""Seconds."""


class Group:
    """The cgroup of a peer's daemons: what CPU time and memory they use. Below the root: the cleaning knows the name."""

    def __init__(self, name: str) -> None:
        self._two = runtime.cgroup2()
        self.folder = Path("/sys/fs/cgroup" if self._two else "/sys/fs/cgroup/cpuacct") / name
        self.folder.mkdir()

    def cpu(self) -> float:
        """Seconds, of all that have ever been in it."""
        if self._two:
            return int((self.folder / "cpu.stat").read_text().split()[1]) / 1e6
        return int((self.folder / "cpuacct.usage").read_text()) / 1e9

    def pids(self) -> list[int]:
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def memory(self) -> dict[str, tuple[int, float, float]]:
        """Program -> (processes, RSS, PSS) in MB."""
        found: dict[str, tuple[int, float, float]] = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                name = os.path.basename(words[0].decode())
                if name.startswith("python"):
                    name = next((w.decode().rpartition("/")[2] for w in words[1:] if w and not w.startswith(b"-")), name)
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
                number, rss, pss = found.get(name, (0, 0.0, 0.0))
                found[name] = (number + 1, rss + sizes["Rss"], pss + sizes["Pss"])
        return found


class Peer:
    """One daemon. `docker` runs the docker command against it, `api` asks it directly."""

    def __init__(self, ground: Ground, name: str, address: str) -> None:
        self.ground = ground
        self.name = name
        self.address = address
        self.folder = ground.folder / name[0]
        self.folder.mkdir()
        self.socket = self.folder / "s.sock"
        self.log = self.folder / "log"
        self.group = Group(f"{ground.name}-{name}")
        self.containers = f"{ground.name}-c-{name}"
        """The cgroup parent."""
        self.holder = ground.hold()
        ground.join(self.holder, address)

    def inside(self, *argv: str) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-m", "--", *argv]

    def begin(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Start the daemon in its namespaces and its cgroup; returns when it answers."""
        script = f'echo 0 > {self.group.folder}/cgroup.procs; exec "$@"'
        with self.log.open("ab") as to:
            self.daemon = subprocess.Popen(
                ["sh", "-c", script, "sh", *self.inside(*command)],
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=to,
                env=environment,
                start_new_session=True,
            )
        until(lambda: self.daemon.poll() is not None or self.answers(), f"{self.name} answers", lambda: self.log.read_text()[-2000:])
        if self.daemon.poll() is not None:
            raise SystemExit(f"bench: {self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}")

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/_ping")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def ask(self, method: str, target: str, body: Any = None, seconds: float = 300) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("docker", timeout=seconds)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(seconds)
        with contextlib.closing(connection):
            connection.sock.connect(str(self.socket))
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, target, data, {"Content-Type": "application/json"} if data else {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def api(self, method: str, target: str, body: Any = None) -> Any:
        status, raw = self.ask(method, target, body)
        if status >= 400:
            raise SystemExit(f"bench: {self.name}: {method} {target}: {status} {raw.decode(errors='replace').strip()}")
        return json.loads(raw) if raw else None

    def api_raw(self, method: str, target: str, body: Any = None) -> bytes:
        """The answer's body, whatever it is."""
        return self.ask(method, target, body)[1]

    def command(self, *argv: str) -> list[str]:
        return [self.ground.docker, "-H", f"unix://{self.socket}", *argv]

    def docker(self, *argv: str) -> str:
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            log = self.log.read_text(errors="replace")[-1500:]
            raise SystemExit(f"bench: {self.name}: docker {' '.join(argv)}: {done.returncode}: {done.stderr.strip()}\n{log}")
        return done.stdout.strip()

    def version(self) -> str:
        return str(self.api("GET", "/version")["Version"])

    def log_file(self, container: str) -> Path:
        """Where its log is written, as seen from here."""
        id = str(self.api("GET", f"/containers/{container}/json")["Id"])
        if self.name == "dockerd":
            return self.folder / "d/containers" / id / f"{id}-json.log"
        return self.folder / "d/containers" / id / "log"


class Ground:
    """What both stand on. With `with`."""

    def __init__(self, dockerd: str = "", images: Sequence[str] = ("box",)) -> None:
        self._dockerd = dockerd
        self._images = images
        self.docker = find_docker()
        self.folder = Path(tempfile.mkdtemp(prefix=f"skb{os.getpid()}-", dir="/tmp"))
        self.name = self.folder.name
        self.peers: list[Peer] = []
        self._cleaner = self._start_cleaner()
        self._links = 0

    def __enter__(self) -> Ground:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        pid, pipe = self._cleaner
        os.close(pipe)
        os.waitpid(pid, 0)

    def _build(self) -> None:
        self.wire = self.hold()
        commands = ("link add br0 type bridge", f"addr add {REGISTRY.partition(':')[0]}/24 dev br0", "link set br0 up")
        for command in commands:
            run("nsenter", "-t", str(self.wire.pid), "-n", "ip", *command.split())
        settings = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "registry")}},
            "http": {"addr": REGISTRY, "secret": "bench"},
        }
        (self.folder / "registry.yml").write_text(json.dumps(settings))
        with (self.folder / "registry.log").open("wb") as log:
            serve = [*self._on_wire(), str(find_tool("docker-registry")), "serve", str(self.folder / "registry.yml")]
            subprocess.Popen(serve, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        push = [*self._on_wire(), sys.executable, __file__, "push", *self._images]
        done = subprocess.run(push, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: the images could not be pushed: {done.stderr[-1000:]} {(self.folder / 'registry.log').read_text()}")
        self._start_skepd()
        if self._dockerd:
            self._start_dockerd(self._dockerd)

    def _on_wire(self) -> list[str]:
        return ["nsenter", "-t", str(self.wire.pid), "-n", "--"]

    def hold(self) -> subprocess.Popen[bytes]:
        """A process whose network and mount namespaces are its own."""
        (self.folder / "hold").touch()
        # the name stays in its command line: the cleaning looks for it
        script = f"ip link set lo up; echo; exec tail -f {self.folder}/hold > {self.folder}/held"
        holder = subprocess.Popen(["unshare", "-n", "-m", "sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.stdout.close()
        return holder

    def join(self, holder: subprocess.Popen[bytes], address: str) -> None:
        self._links += 1
        link = f"p{self._links}"
        wire = ["nsenter", "-t", str(self.wire.pid), "-n", "ip"]
        run(*wire, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        run(*wire, "link", "set", link, "master", "br0", "up")
        there = ["nsenter", "-t", str(holder.pid), "-n", "ip"]
        for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", f"route add default via {REGISTRY.partition(':')[0]}"):
            run(*there, *command.split())

    def _start_skepd(self) -> None:
        peer = Peer(self, "skepd", "192.0.2.11")
        command = [sys.executable, "-m", "skep.daemon", "--data-root", f"{peer.folder}/d", "--run-root", f"{peer.folder}/r"]
        command += ["--host", f"unix://{peer.socket}", "--docker-socket", "", "--cgroup-parent", f"/{peer.containers}"]
        command += ["--hostname", "bench", "--image-gc-high", "100", "--insecure-registry", REGISTRY]
        # /run is on a tmpfs as a rule, and here too
        (peer.folder / "r").mkdir()
        run(*peer.inside("mount", "-t", "tmpfs", "tmpfs", f"{peer.folder}/r"))
        peer.begin(command)
        self.peers.append(peer)

    def _start_dockerd(self, program: str) -> None:
        peer = Peer(self, "dockerd", "192.0.2.12")
        (peer.folder / "e").mkdir()
        run(*peer.inside("mount", "-t", "tmpfs", "tmpfs", f"{peer.folder}/e"))
        command = [program, "--data-root", f"{peer.folder}/d", "--exec-root", f"{peer.folder}/e", "--pidfile", f"{peer.folder}/pid"]
        command += ["-H", f"unix://{peer.socket}", "--cgroup-parent", f"/{peer.containers}", "--insecure-registry", REGISTRY]
        command += ["--storage-driver", "overlay2", "--log-level", "error"]
        beside = Path(program).resolve()
        folders = [beside.parent, *(beside.parent.parent / name for name in ("bin", "sbin"))]
        proxy = next((str(folder / "docker-proxy") for folder in folders if (folder / "docker-proxy").exists()), "")
        command += ["--userland-proxy-path", proxy] if proxy else []
        path = ":".join([*map(str, folders), os.environ.get("PATH", ""), "/usr/sbin:/sbin"])
        peer.begin(command, {**os.environ, "PATH": path})
        self.peers.append(peer)

    # the end

    def _start_cleaner(self) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid:
            os.close(reader)
            return pid, writer
        os.close(writer)
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        try:
            os.read(reader, 1)
            clear(self.folder)
        except BaseException as error:
            print(f"bench: could not clear {self.folder}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(0)


def clear(folder: Path) -> None:
    """Everything that carries the folder's name: processes, cgroups, files. The mounts were in namespaces that end with their processes."""
    end = time.monotonic() + 30
    while (pids := left(folder)) and time.monotonic() < end:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if line.split()[4].startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", line.split()[4]], capture_output=True)
    for _ in range(100):  # what was killed is still ending
        for cgroup in (f"{folder.name}-{kind}{name}" for kind in ("", "c-") for name in ("skepd", "dockerd", "bare")):
            bundle.remove_cgroups(cgroup)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists() and not any(Path("/sys/fs/cgroup").glob(f"**/{folder.name}-*")):
            return
        time.sleep(0.1)


def left(folder: Path) -> list[int]:
    """The daemons first: they start nothing new then."""
    found: list[tuple[int, int]] = []
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                group = Path(f"/proc/{pid}/cgroup").read_text()
                if folder.name in words or folder.name in group:
                    found.append((0 if "daemon" in words or "dockerd" in words else 1, int(pid)))
    return [pid for _, pid in sorted(found)]


# what the programs share


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def until(holds: Callable[[], Any], what: str, why: Callable[[], str] = lambda: "", *, every: float = 0.01) -> None:
    end = time.monotonic() + READY_WITHIN
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"bench: after {READY_WITHIN:.0f} s still not so: {what}\n{why()}")
        time.sleep(every)


def find_docker() -> str:
    """The docker command on PATH, or as `make setup` unpacked it."""
    ours = Path(__file__).parents[1] / ".cache/tools/docker-cli/usr/bin/docker"
    found = shutil.which("docker") or (str(ours) if ours.exists() else "")
    if not found:
        raise SystemExit("bench: needs the docker command (make setup)")
    return found


def arguments(doc: str | None, **numbers: int) -> argparse.ArgumentParser:
    """The flags that the programs share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dockerd", default=os.environ.get("SKEP_BENCH_DOCKERD", ""), help="a dockerd to compare with")
    parser.add_argument("--json", type=Path)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    if os.geteuid() != 0:
        sys.exit("bench: needs root")
    options = parser.parse_args()
    if options.dockerd and not os.access(options.dockerd, os.X_OK):
        sys.exit(f"bench: {options.dockerd} is no program")
    if not options.dockerd:
        print("(no dockerd to compare with: --dockerd FILE or $SKEP_BENCH_DOCKERD)")
    return options


@contextlib.contextmanager
def stage(options: argparse.Namespace, images: Sequence[str] = ("box",)) -> Iterator[Ground]:
    """Both peers, with the first image there."""
    with Ground(options.dockerd, images) as ground:
        for peer in ground.peers:
            print(f"{peer.name} {peer.version()}", end="; ")
        print(f"load {os.getloadavg()[0]:.1f}", flush=True)
        yield ground


def finish(options: argparse.Namespace, *tables: Table) -> None:
    if options.json:
        document = {"load": os.getloadavg(), "cpus": os.cpu_count(), "tables": [table.document() for table in tables]}
        options.json.write_text(json.dumps(document, indent=1))


def builders() -> dict[str, Callable[[], Built]]:
    """What can be pushed."""
    import pull

    return {"box": lambda: image([layer(own_images.base_files())], cmd=["sh"]), **pull.BUILDERS}


def push(names: Sequence[str]) -> None:
    def serves() -> bool:
        try:
            with socket.create_connection((REGISTRY.partition(":")[0], 5000), 1):
                return True
        except OSError:
            return False

    until(serves, "the registry answers")
    for name in names:
        push_image(f"http://{REGISTRY}", name, "1", builders()[name]())


if __name__ == "__main__":
    push(sys.argv[2:])
