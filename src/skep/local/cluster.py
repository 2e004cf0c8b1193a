"""A cluster on this machine: nodes are skepds in namespaces of their own; up, status, and down that leaves nothing behind.

Everything that is made follows from the cluster's name (see layout.py), and all processes are in the cluster's cgroups: `down` needs no
state, and works after a kill -9 of everything. See docs/cluster.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skep.errors import Conflict, Invalid, NotFound, SkepError, Unavailable
from skep.local import calls
from skep.local.layout import Layout, NodePlan, default_subnet, layout, names
from skep.local.process import NODEINIT, command, node_environment
from skep.local.registry import start_registry
from skep.local.underlay import Underlay, subnets_in_use

MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
Say = Callable[[str], None]


def up(
    name: str, *, workers: int, registry: bool, publish: list[tuple[int, int]], stack: str = "", say: Say, images: bool = True
) -> Layout:
    """Make the cluster and return when all its nodes are ready. What was made is removed again when that fails.

    Raises Conflict when a cluster of this name is there, SkepError with the reason otherwise.
    """
    at = layout(name)
    if at.nodes:
        raise Conflict(
            f"cluster {name!r} is there already: `skep cluster status --name {name}` shows it, `skep cluster down --name {name}` removes it"
        )
    if os.geteuid():
        raise Invalid("skep cluster up makes namespaces and mounts: run it as root, or through sudo")
    if stack and not Path(stack).is_dir():
        raise Invalid(f"--stack {stack}: no such folder")
    at.subnet = default_subnet(name, subnets_in_use() | {layout(n).subnet for n in names()})
    at.nodes = [NodePlan("manager", at.host_address(10), manager=True)]
    at.nodes += [NodePlan(f"worker{i:02}", at.host_address(10 + i)) for i in range(1, workers + 1)]
    at.registry, at.publish, at.stack = registry, publish, str(Path(stack).resolve()) if stack else ""
    try:
        at.save()
        _make(at, say, images)
    except BaseException:
        say("taking down what was made")
        down(name, say=lambda text: None)
        raise
    return at


def _make(at: Layout, say: Say, images: bool) -> None:
    underlay = Underlay(at.name)
    say(f"underlay {at.subnet}/24")
    _prepare(at)
    underlay.create(at.subnet)
    for node in at.nodes:
        _make_node(at, underlay, node)
        start_node(at, node.name)
    if at.registry:
        say("registry at registry:5000")
        _link(at, "registry", underlay.add_node("registry", at.registry_address))
        start_registry_node(at)
    for node in at.nodes:
        wait_for_socket(at, node.name)
        say(f"{node.name} is up")
    _join(at, say)
    for host_port, node_port in at.publish:
        underlay.publish(host_port, at.nodes[0].address, node_port)
        say(f"port {host_port} of this host leads to port {node_port} of the manager")
    if at.registry and images:
        push_images(at, say)
    start_host(at)


def _prepare(at: Layout) -> None:
    pins = at.namespace("x", "y").parent
    pins.mkdir(parents=True, exist_ok=True)
    # a namespace can be pinned on a private mount only
    mount(str(pins), str(pins), "", MS_BIND)
    mount("", str(pins), "", MS_PRIVATE)
    if at.stack and not Path("/stack").exists():
        at.made_stack_point = True
        at.save()
        Path("/stack").mkdir()
    for part in ["host", "registry", *(f"{n.name}/{p}" for n in at.nodes for p in ("daemon", "exec"))]:
        for folder in at.cgroups(part):
            folder.mkdir(parents=True, exist_ok=True)
    for node in at.nodes:
        # the daemon gives its containers' controllers; cgroup v2 passes them on by name
        for folder in at.cgroups(f"{node.name}/containers"):
            folder.mkdir(parents=True, exist_ok=True)


def _link(at: Layout, node: str, netns: str | Path) -> None:
    at.namespace(node, "net").unlink(missing_ok=True)
    at.namespace(node, "net").symlink_to(netns)


def _make_node(at: Layout, underlay: Underlay, node: NodePlan) -> None:
    _link(at, node.name, underlay.add_node(node.name, node.address))
    run = at.run_of(node.name)
    run.mkdir(parents=True, exist_ok=True)
    mount("tmpfs", str(run), "tmpfs", 0, "mode=755,size=256m")
    etc = at.data(node.name) / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", *(f"{n.address} {n.name}" for n in at.nodes)]
    if at.registry:
        hosts.append(f"{at.registry_address} registry")
    (etc / "hosts").write_text("\n".join(hosts) + "\n")
    (etc / "hostname").write_text(node.name + "\n")
    mounts = [
        [str(run), "/run", "", MS_BIND | MS_REC, ""],
        [str(etc / "hosts"), "/etc/hosts", "", MS_BIND, ""],
        [str(etc / "hostname"), str(Path("/etc/hostname").resolve()), "", MS_BIND, ""],
    ]
    if not Path("/etc/hostname").exists():
        mounts.pop()
    if at.stack and node.manager:
        mounts.append([at.stack, "/stack", "", MS_BIND, ""])
    for kind in ("mnt", "uts"):
        at.namespace(node.name, kind).touch()
    job = json.dumps({"ns": [str(at.namespace(node.name, "net"))], "mounts": mounts, "hostname": node.name})
    line = ["unshare", f"--mount={at.namespace(node.name, 'mnt')}", f"--uts={at.namespace(node.name, 'uts')}", "--propagation", "slave"]
    done = subprocess.run([*line, sys.executable, "-I", "-S", NODEINIT, job], capture_output=True, text=True)
    if done.returncode:
        raise SkepError(f"{node.name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'cannot make its namespaces'}")


def start_node(at: Layout, node: str) -> None:
    """Start the skepd of a node that is made and not running."""
    if daemon_pid(at, node):
        return
    arguments = [
        sys.executable, "-m", "skep.daemon", "--config", os.devnull, "--data-root", str(at.data(node) / "data"), "--run-root", "/run/skep",
        "--host", "unix:///run/skep/docker.sock", "--hostname", node, "--cgroup-parent", f"/{at.cgroup}/{node}/containers",
    ]  # fmt: skip
    if at.registry:
        arguments += ["--insecure-registry", "registry:5000"]
    if at.registry and os.environ.get("SKEP_LOG_LEVEL"):
        arguments += ["--log-level", os.environ["SKEP_LOG_LEVEL"]]
    with at.log(node).open("ab") as log:
        line = command(at, node, arguments, part="daemon", cwd="/", env=node_environment(), detach=True)
        subprocess.run(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)


def wait_for_socket(at: Layout, node: str) -> None:
    end = time.monotonic() + 10

    def alive() -> bool:
        return bool(daemon_pid(at, node)) or time.monotonic() < end

    try:
        calls.wait_for(at.socket(node), seconds=60, alive=alive)
    except Unavailable as e:
        tail = at.log(node).read_text(errors="replace").strip().splitlines()[-3:] if at.log(node).exists() else []
        raise Unavailable(f"{node} did not come up ({e.text}): {' | '.join(tail) or 'no log'}") from None


def start_registry_node(at: Layout) -> None:
    start_registry(at)


def _join(at: Layout, say: Say) -> None:
    manager, *workers = at.nodes
    socket = at.socket(manager.name)
    calls.call(socket, "POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": manager.address, "Spec": {}})
    token = calls.call(socket, "GET", "/swarm")["JoinTokens"]["Worker"]
    for node in workers:
        calls.call(
            at.socket(node.name),
            "POST",
            "/swarm/join",
            {
                "ListenAddr": "0.0.0.0:2377",
                "AdvertiseAddr": node.address,
                "RemoteAddrs": [f"{manager.address}:2377"],
                "JoinToken": token,
            },
        )
    end = time.monotonic() + 60
    while True:
        nodes = calls.call(socket, "GET", "/nodes")
        ready = [n["Description"]["Hostname"] for n in nodes if n["Status"]["State"] == "ready"]
        if len(ready) == len(at.nodes):
            say(f"{len(ready)} nodes are ready")
            return
        if time.monotonic() > end:
            missing = sorted({n.name for n in at.nodes} - set(ready))
            raise Unavailable(f"not ready after 60 s: {', '.join(missing)}")
        time.sleep(0.02)


def push_images(at: Layout, say: Say) -> None:
    """Build the images of the tutorial from files and push them to the cluster's registry."""
    from skep.local.images import push_stand_ins

    for shown in push_stand_ins(f"http://{at.registry_address}:5000"):
        say(f"image {shown}")


def start_host(at: Layout) -> None:
    """Start what serves the host socket, and wait for it."""
    with (Path(at.root) / "host.log").open("ab") as log:
        job = json.dumps(
            {"cgroups": [str(p) for p in at.cgroups("host")], "argv": [sys.executable, "-m", "skep.local.hostd", at.name], "detach": True}
        )
        subprocess.run([sys.executable, "-I", "-S", NODEINIT, job], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
    calls.wait_for(at.host_socket, seconds=30)


# -- what runs


def pids(at: Layout, part: str) -> list[int]:
    """Processes of one part of the cluster (`manager`, `worker01/daemon`, ``: all), in any controller."""
    found: set[int] = set()
    for tree in at.cgroup_trees():
        top = tree / part if part else tree
        for folder, _, _ in os.walk(top):
            with contextlib.suppress(OSError):
                found.update(int(x) for x in Path(folder, "cgroup.procs").read_text().split())
    return sorted(found)


def daemon_pid(at: Layout, node: str) -> int:
    """Of the node's skepd (or the registry); 0 when it does not run."""
    word = b"docker-registry" if node == "registry" else b"skep.daemon"
    for pid in pids(at, "registry" if node == "registry" else f"{node}/daemon"):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/cmdline").read_bytes() and b"nodeinit" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


def started_at(pid: int) -> int:
    """When a process was started, in ns since 1970; 0 when it is gone."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, StopIteration):
        return 0
    return (boot * os.sysconf("SC_CLK_TCK") + ticks) * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def kill_node(at: Layout, node: str) -> None:
    """Lose a node as a machine is lost: its skepd and all its containers, at once."""
    if not at.node(node) and node != "registry":
        raise NotFound(f"no node {node!r} in cluster {at.name!r}")
    _kill_all(at, node)


def signal_node(at: Layout, node: str, name: str) -> None:
    number = signal.Signals["SIG" + name.removeprefix("SIG")] if not name.isdigit() else signal.Signals(int(name))
    if pid := daemon_pid(at, node):
        os.kill(pid, number)


def stop_node(at: Layout, node: str) -> None:
    """Stop skepd in order (containers go on, as with systemd's KillMode=process)."""
    pid = daemon_pid(at, node)
    if not pid:
        return
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 20
    while daemon_pid(at, node) and time.monotonic() < end:
        time.sleep(0.02)


def _kill_all(at: Layout, part: str) -> None:
    end = time.monotonic() + 20
    while found := pids(at, part):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise SkepError(f"processes do not end: {', '.join(map(str, found))}")
        time.sleep(0.01)


def status(name: str) -> list[dict[str, Any]]:
    """One row a node: name, address, state (running or dead), pid, socket."""
    at = layout(name)
    if not at.nodes:
        raise NotFound(f"no cluster {name!r} on this machine")
    rows = []
    for node in at.nodes:
        pid = daemon_pid(at, node.name)
        role = "manager" if node.manager else "worker"
        rows.append(
            {
                "node": node.name,
                "role": role,
                "address": node.address,
                "state": "running" if pid else "dead",
                "pid": pid,
                "socket": str(at.socket(node.name)),
            }
        )
    if at.registry:
        pid = daemon_pid(at, "registry")
        rows.append(
            {
                "node": "registry",
                "role": "registry",
                "address": at.registry_address,
                "state": "running" if pid else "dead",
                "pid": pid,
                "socket": "",
            }
        )
    return rows


# -- down


def down(name: str, *, say: Say) -> bool:
    """Remove everything of the cluster; False when there was nothing. Needs no state and may be repeated."""
    at = layout(name)
    there = Path(at.root).exists() or Path(at.run).exists() or bool(at.cgroup_trees())
    _kill_all(at, "")
    Underlay(name).destroy()
    for prefix in (at.run, at.root):
        for _ in range(8):
            targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
            below = [t for t in targets if t == prefix or t.startswith(prefix + "/")]
            if not below:
                break
            for target in reversed(below):
                unmount(target)
    for tree in at.cgroup_trees():
        _remove_tree(tree)
    for folder in (at.run, at.root):
        shutil.rmtree(folder, ignore_errors=True)
    for base in (Path(at.run).parent, Path(at.root).parent):
        with contextlib.suppress(OSError):
            base.rmdir()
            base.parent.rmdir()
    used = any(layout(n).stack for n in names())
    if at.made_stack_point and not used:
        with contextlib.suppress(OSError):
            Path("/stack").rmdir()
    if there:
        say(f"cluster {name} is gone")
    return there


def _remove_tree(tree: Path) -> None:
    end = time.monotonic() + 10
    while tree.exists():
        for folder, _, _ in os.walk(tree, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if tree.exists():
            if time.monotonic() > end:
                raise SkepError(f"{tree} cannot be removed")
            time.sleep(0.02)


_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    done = _libc.mount(source.encode() or None, target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    if done:
        number = ctypes.get_errno()
        raise SkepError(f"mount {source} on {target}: {os.strerror(number)}")


def unmount(target: str) -> None:
    _libc.umount2(target.encode(), MNT_DETACH)
