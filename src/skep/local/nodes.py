"""One node of a one-machine cluster as a machine: made, started, stopped in order, lost at once, started again.

A node that is stopped keeps its namespaces and its containers; one that is lost keeps its disk and nothing else: its processes, namespaces,
links and /run are gone at once, and starting it makes them anew, as booting does. Synchronous. See docs/cluster.md.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from skep.errors import Invalid, NotFound, SkepError, Unavailable
from skep.local import calls, traces
from skep.local.layout import REGISTRY, STACK, Layout, base_root, base_run
from skep.local.process import NODEINIT, command, daemon_environment
from skep.local.registry import start_registry
from skep.local.traces import MS_BIND, MS_MOVE, MS_PRIVATE, mount
from skep.local.underlay import Underlay

PARTS = ("daemon", "exec", "containers")
RESOLVED = Path("/run/systemd/resolve/resolv.conf")
"""What stands behind the loopback address that systemd-resolved puts into /etc/resolv.conf."""


# -- what runs


def pids(at: Layout, part: str) -> list[int]:
    """Processes of one part of the cluster (`manager`, `worker01/daemon`, ``: all), in any controller."""
    return traces.processes(at.cgroup_trees(part))


def daemon_pid(at: Layout, node: str) -> int:
    """Of the node's skepd (or the registry); 0 when it does not run."""
    word = b"docker-registry" if node == REGISTRY else b"skep.daemon"
    for tree in at.cgroups(REGISTRY if node == REGISTRY else f"{node}/daemon")[:1]:
        for pid in traces.processes([tree]):
            with suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if word in line and b"nodeinit" not in line:
                    return pid
    return 0


def started_at(pid: int) -> int:
    """When a process was started, in ns since 1970; 0 when it is gone."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
    # both clocks count from the same boot; the wall clock may have been set since
    since_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.time_ns() - since_boot + ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def made(at: Layout, node: str) -> bool:
    """Its namespaces are there; whether anything runs in them is another question."""
    if node == REGISTRY:
        return traces.mounted(at.namespace(node, "net"))
    return all(traces.mounted(at.namespace(node, kind)) for kind in ("uts", "mnt")) and at.namespace(node, "net").exists()


# -- made, started


def prepare(at: Layout) -> None:
    """What all nodes share: the folder for pins, /stack, cgroups, the wire. Idempotent."""
    pins = at.namespace("x", "y").parent
    traces.make_folder(pins)
    if not traces.mounts_at(str(pins)):
        # a mount namespace can be pinned on a private mount only
        mount(str(pins), str(pins), "", MS_BIND)
        mount("", str(pins), "", MS_PRIVATE)
    if at.stack:
        traces.use_point(STACK, at.name)
    make_cgroup(at, "host")
    underlay = Underlay(at.name)
    if not traces.mounted(Path(at.run) / "net" / "underlay"):
        underlay.create(at.subnet)
        for host_port, node_port in at.publish:
            underlay.publish(host_port, at.nodes[0].address, node_port)


def make_cgroup(at: Layout, part: str) -> None:
    for folder in at.cgroups(part):
        folder.mkdir(parents=True, exist_ok=True)


def make_node(at: Layout, node: str) -> None:
    """Network, cgroups, /run and namespaces of a node that has none. Its data, where it has any, stays."""
    wire = Underlay(at.name).add_node(node, at.address(node))
    if node == REGISTRY:
        make_cgroup(at, REGISTRY)
        _link(at, node, wire)
        return
    for part in PARTS:
        make_cgroup(at, f"{node}/{part}")
    _link(at, node, wire)
    run = at.run_of(node)
    traces.make_folder(run)
    mount("tmpfs", str(run), "tmpfs", 0, "mode=755,size=256m")
    etc = at.data(node) / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    mounts = _own_run(at, node) + [m for name, text in _etc(at, node).items() for m in _own_file(at, node, etc, name, text)]
    if at.stack and node == at.nodes[0].name:
        mounts.append([at.stack, str(STACK), "", MS_BIND, ""])
    _pin(at, node, {"cgroups": _daemon_cgroups(at, node), "new": True, "mounts": mounts, "hostname": node, "hold": True})


def _daemon_cgroups(at: Layout, node: str) -> list[str]:
    return [str(folder) for folder in at.cgroups(f"{node}/daemon")]


def _link(at: Layout, node: str, netns: Path) -> None:
    at.namespace(node, "net").unlink(missing_ok=True)
    at.namespace(node, "net").symlink_to(netns)


def _own_run(at: Layout, node: str) -> list[list[Any]]:
    """The node's tmpfs becomes its /run, and of what others have mounted (other nodes' pins, other clusters, this host's daemons) it keeps
    no copy: a copy would hold it when its owner lets it go."""
    staging = at.data(node) / "run"
    staging.mkdir(exist_ok=True)
    clear = [[None, path, "", 0, ""] for path in (base_run(), "/run", str(Path(base_root()).parent / "containers"))]
    return [[str(at.run_of(node)), str(staging), "", MS_BIND, ""], *clear, [str(staging), "/run", "", MS_MOVE, ""]]


def _etc(at: Layout, node: str) -> dict[str, str]:
    """Names and contents of the node's own files in /etc."""
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", *(f"{at.address(n)} {n}" for n in at.members)]
    files = {"hosts": "\n".join(hosts) + "\n", "hostname": node + "\n"}
    resolv = _read(Path("/etc/resolv.conf"))
    if _only_loopback(resolv):
        # this host's own resolver is not to be reached from the node: ask those that it asks
        resolv = _read(RESOLVED) or resolv
    files["resolv.conf"] = resolv
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _only_loopback(resolv: str) -> bool:
    servers = [line.split()[1] for line in resolv.splitlines() if line.startswith("nameserver") and len(line.split()) > 1]
    return bool(servers) and all(s.startswith("127.") or s == "::1" for s in servers)


def _own_file(at: Layout, node: str, etc: Path, name: str, text: str) -> list[list[Any]]:
    """Puts it where /etc/NAME of this host leads to; below /run that is in the node's own tmpfs, which needs no mount."""
    target = Path("/etc", name).resolve()
    if target.is_relative_to("/run"):
        there = at.run_of(node) / target.relative_to("/run")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(text)
        return []
    (etc / name).write_text(text)
    return [[str(etc / name), str(target), "", MS_BIND, ""]] if target.exists() else []


def _pin(at: Layout, node: str, job: dict[str, Any]) -> None:
    """Let a process make the namespaces and hold them until they are pinned. It is in the node's cgroup: `down` finds it."""
    line = [sys.executable, "-I", "-S", NODEINIT, json.dumps(job)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout and process.stdin and process.stderr
        try:
            if process.stdout.readline() != "ready\n":
                said = process.stderr.read().strip().splitlines()
                raise SkepError(f"{node}: {said[-1] if said else 'cannot make its namespaces'}")
            for kind in ("mnt", "uts"):
                pin = at.namespace(node, kind)
                pin.touch()
                mount(f"/proc/{process.pid}/ns/{kind}", str(pin), "", MS_BIND)
        except BaseException:
            process.kill()
            raise
        process.stdin.close()


def start_node(at: Layout, node: str) -> None:
    """Start the skepd of a node (or the registry) that does not run. A node that was lost is made anew first, as by booting."""
    if daemon_pid(at, node):
        return
    if not made(at, node):
        lose_node(at, node)
        make_node(at, node)
    if node == REGISTRY:
        start_registry(at)
        return
    arguments = [
        sys.executable, "-m", "skep.daemon", "--config", os.devnull, "--data-root", str(at.data(node) / "data"), "--run-root", "/run/skep",
        "--host", "unix:///run/skep/docker.sock", "--hostname", node, "--cgroup-parent", f"/{at.cgroup}/{node}/containers",
    ]  # fmt: skip
    if at.registry:
        arguments += ["--insecure-registry", f"{REGISTRY}:5000"]
    if at.stand_ins:
        arguments += ["--registry-mirror", f"http://{REGISTRY}:5000"]
    if level := os.environ.get("SKEP_LOG_LEVEL"):
        arguments += ["--log-level", level]
    line = command(at, node, arguments, part="daemon", cwd="/", env=daemon_environment(), daemon=True)
    spawn(line, at.log(node), node)


def spawn(line: list[str], log: Path, what: str) -> None:
    """Start something that leaves us; what it says goes to its log. Raises SkepError with the end of that when it cannot be started."""
    with log.open("ab") as output:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/")
    if done.returncode:
        raise SkepError(f"{what} cannot be started: {last_words(log)}")


def last_words(log: Path) -> str:
    """The end of a log; of a traceback the line that counts."""
    lines = _read(log).strip().splitlines()[-3:]
    return " | ".join(lines) or "it said nothing"


def wait_for_socket(at: Layout, node: str) -> None:
    """Until the node's API answers (the registry does so once it is started)."""
    if node == REGISTRY:
        return
    end = time.monotonic() + 10

    def alive() -> bool:
        return bool(daemon_pid(at, node)) or time.monotonic() < end

    try:
        calls.wait_for(at.socket(node), seconds=60, alive=alive)
    except Unavailable as e:
        raise Unavailable(f"{node} did not come up ({e.text}): {last_words(at.log(node))}") from None


# -- stopped, lost


def check_node(at: Layout, node: str) -> None:
    if not at.nodes:
        raise NotFound(f"no cluster {at.name!r} on this machine")
    if node not in at.members:
        raise NotFound(f"no node {node!r} in cluster {at.name!r}: there are {', '.join(at.members)}")


def kill_node(at: Layout, node: str) -> None:
    """Lose a node as a machine is lost: skepd, all its containers, its network and its /run, at once."""
    check_node(at, node)
    lose_node(at, node)


def lose_node(at: Layout, node: str) -> None:
    """Nothing is left of it but its disk. Idempotent."""
    part = at.cgroup_trees(node)
    traces.end_processes(part)
    Underlay(at.name).remove_node(node)
    for kind in ("mnt", "uts", "net"):
        pin = at.namespace(node, kind)
        while not pin.is_symlink() and traces.mounted(pin):
            traces.unmount(str(pin))
        pin.unlink(missing_ok=True)
    if node != REGISTRY:
        traces.unmount_all(str(at.run_of(node)))
        shutil.rmtree(at.run_of(node), ignore_errors=True)
    traces.remove_cgroups(part)


def signal_node(at: Layout, node: str, name: str) -> None:
    """To its skepd alone. Raises Invalid for a signal that there is not."""
    check_node(at, node)
    try:
        number = signal.Signals(int(name)) if name.isdigit() else signal.Signals["SIG" + name.upper().removeprefix("SIG")]
    except (KeyError, ValueError):
        raise Invalid(f"Invalid signal: {name}") from None
    if pid := daemon_pid(at, node):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def stop_node(at: Layout, node: str, *, name: str = "SIGTERM", grace: float = 20.0) -> None:
    """Stop skepd in order, or after `grace` seconds by SIGKILL; its containers go on (as with systemd's KillMode=process)."""
    check_node(at, node)
    if not daemon_pid(at, node):
        return
    signal_node(at, node, name)
    if not _ended(at, node, grace):
        signal_node(at, node, "SIGKILL")
        _ended(at, node, 10.0)


def _ended(at: Layout, node: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while daemon_pid(at, node):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
