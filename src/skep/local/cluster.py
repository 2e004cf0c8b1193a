"""A cluster on this machine: nodes are skepds in namespaces of their own; up, status, and down that leaves nothing behind.

Everything that is made follows from the cluster's name (see layout.py), and all processes are in the cluster's cgroups: `down` needs no
state, and works after a kill -9 of everything. See docs/cluster.md.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from skep.errors import Conflict, Invalid, NotFound, SkepError, Unavailable
from skep.local import calls, traces
from skep.local.images import OWN, STAND_INS, push_images
from skep.local.layout import REGISTRY, STACK, Layout, NodePlan, default_subnet, layout, names
from skep.local.nodes import (
    check_node,
    daemon_pid,
    kill_node,
    made,
    make_node,
    pids,
    prepare,
    spawn,
    start_node,
    stop_node,
    wait_for_socket,
)
from skep.local.process import NODEINIT, daemon_environment
from skep.local.registry import PORT, find_tool
from skep.local.underlay import Underlay, subnets_in_use

__all__ = [
    "alone", "daemon_pid", "down", "kill_node", "pids", "resume", "start_host", "start_node", "status", "stop_node", "up",
    "wait_for_socket", "whole",
]  # fmt: skip

Say = Callable[[str], None]
PATIENCE = 60.0
"""Seconds within which a node that answers must be ready."""


def up(
    name: str,
    *,
    workers: int,
    registry: bool,
    publish: list[tuple[int, int]],
    stack: str = "",
    say: Say,
    images: bool = True,
    stand_ins: bool = False,
) -> Layout:
    """Make the cluster and return when all its nodes are ready. What was made is removed again when that fails, or is interrupted.

    Raises Conflict when a cluster of this name is there, SkepError with the reason otherwise. What a failed attempt has left, and of which
    nothing runs, is removed first.
    """
    at = layout(name)
    _need_root("up makes namespaces and mounts")
    _check_publish(publish)
    stack = _check_stack(stack)
    if registry or stand_ins:
        find_tool("docker-registry")
    if stand_ins:
        find_tool("nginx")
    with traces.locked(at.lock, name):
        at = layout(name)
        if at.there():
            _clear_leftover(at, say)
        at = layout(name)
        try:
            at.created = time.time_ns()
            at.registry, at.stand_ins, at.publish, at.stack = registry or stand_ins, stand_ins, publish, stack
            others = [layout(n) for n in names() if n != name]
            _check_free(publish, others)
            at.subnet = default_subnet(name, subnets_in_use() | {o.subnet for o in others})
            at.nodes = [NodePlan("manager", at.host_address(10), manager=True)]
            at.nodes += [NodePlan(f"worker{i:02}", at.host_address(10 + i)) for i in range(1, workers + 1)]
            _make(at, say, images)
        except BaseException:
            say("taking down what was made")
            _remove(at)
            raise
    return at


def _make(at: Layout, say: Say, images: bool) -> None:
    traces.make_folder(Path(at.root))
    at.save()
    say(f"underlay {at.subnet}/24")
    prepare(at)
    _start(at, say)
    with _answering():
        _join(at, say)
    for host_port, node_port in at.publish:
        say(f"port {host_port} of this host leads to port {node_port} of the manager")
    if at.registry and images:
        url = f"http://{at.registry_address}:{PORT}"
        for shown in push_images(url, OWN):
            say(f"image {shown}")
        for shown in push_images(url, STAND_INS if at.stand_ins else {}):
            say(f"stand-in for docker.io/{shown}")
    start_host(at)
    at.ready = True
    at.save()


def _start(at: Layout, say: Say) -> None:
    """All that does not run: each is started, then each is waited for."""
    for node in at.members:
        if not made(at, node):
            make_node(at, node)
        start_node(at, node)
        if node == REGISTRY:
            say(f"registry at {REGISTRY}:5000")
    for planned in at.nodes:
        wait_for_socket(at, planned.name)
        say(f"{planned.name} is up")


@contextmanager
def _answering() -> Iterator[None]:
    """A node that goes away while it is spoken to is an error with words."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"a node does not answer any more: {error.strerror or error}") from None


def _join(at: Layout, say: Say) -> None:
    manager, *workers = at.nodes
    api = at.socket(manager.name)
    calls.call(api, "POST", "/swarm/init", {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": manager.address, "Spec": {}})
    token = calls.call(api, "GET", "/swarm")["JoinTokens"]["Worker"]

    def join(node: NodePlan) -> None:
        remote = [f"{manager.address}:2377"]
        wanted = {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": node.address, "RemoteAddrs": remote, "JoinToken": token}
        calls.call(at.socket(node.name), "POST", "/swarm/join", wanted)

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(join, workers))
    _wait_until_ready(at, say)


def _wait_until_ready(at: Layout, say: Say) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            nodes = calls.call(at.socket(at.nodes[0].name), "GET", "/nodes")
        except Unavailable:
            nodes = []
        ready = [n["Description"]["Hostname"] for n in nodes if n["Status"]["State"] == "ready"]
        if len(ready) == len(at.nodes):
            say(f"{len(ready)} nodes are ready")
            return
        if time.monotonic() > end:
            missing = sorted({n.name for n in at.nodes} - set(ready))
            raise Unavailable(f"not ready after {PATIENCE:.0f} s: {', '.join(missing)}")
        time.sleep(0.02)


def start_host(at: Layout) -> None:
    """Start what serves the host socket, unless it runs, and wait for it."""
    if not pids(at, "host"):
        cgroups = [str(folder) for folder in at.cgroups("host")]
        argv = [sys.executable, "-m", "skep.local.hostd", at.name]
        job = json.dumps({"cgroups": cgroups, "argv": argv, "env": daemon_environment(), "daemon": True, "detach": True})
        spawn([sys.executable, "-I", "-S", NODEINIT, job], Path(at.root) / "host.log", "the host socket")
    calls.wait_for(at.host_socket, seconds=30)


def alone(at: Layout) -> AbstractContextManager[None]:
    """Nobody else changes the cluster meanwhile."""
    return traces.locked(at.lock, at.name, patience=PATIENCE)


def resume(name: str, nodes: list[str], *, say: Say) -> None:
    """Start what does not run of a cluster that was made: these nodes, or all of it, also after this machine was booted anew."""
    _need_root("start makes namespaces and mounts")
    at = whole(name)
    if not at.ready:
        raise Conflict(f"cluster {name!r} was never finished: `skep cluster down --name {name}` removes it, `up` makes it anew")
    for node in nodes:
        check_node(at, node)
    with alone(at):
        prepare(at)
        if nodes:
            for node in nodes:
                start_node(at, node)
                wait_for_socket(at, node)
                say(f"{node} is up")
            return
        _start(at, say)
        with _answering():
            _wait_until_ready(at, say)
        start_host(at)


# -- what is asked, checked


def whole(name: str) -> Layout:
    """The layout of a cluster that is there. Raises NotFound; Conflict when only pieces are."""
    at = layout(name)
    if at.nodes:
        return at
    if at.there():
        raise Conflict(f"of cluster {name!r} only pieces are left: `skep cluster down --name {name}` removes them")
    raise NotFound(f"no cluster {name!r} on this machine")


def _need_root(why: str) -> None:
    if os.geteuid():
        raise Invalid(f"skep cluster {why}: run it as root, or through sudo")


def _check_publish(publish: list[tuple[int, int]]) -> None:
    ports = [host_port for host_port, _ in publish]
    if double := sorted({p for p in ports if ports.count(p) > 1}):
        raise Invalid(f"--publish: port {double[0]} of this host is given twice")


def _check_free(publish: list[tuple[int, int]], others: list[Layout]) -> None:
    """A published port takes all that comes to it: it must not be somebody's already."""
    for host_port, _ in publish:
        for other in others:
            if any(host_port == port for port, _ in other.publish):
                raise Conflict(f"--publish {host_port}: this port leads to cluster {other.name!r} already")
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                with socket.socket(family) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    probe.bind((address, host_port))
            except OSError as error:
                if error.errno == 98:
                    raise Conflict(f"--publish {host_port}: a program on this host listens on this port") from None


def _check_stack(stack: str) -> str:
    if not stack:
        return ""
    try:
        folder = Path(stack).resolve()
    except OSError:
        raise Invalid(f"--stack {stack}: the current folder is gone") from None
    if not folder.is_dir():
        raise Invalid(f"--stack {stack}: {'is no folder' if folder.exists() else 'no such folder'}")
    if STACK.exists() and not STACK.is_dir():
        raise Invalid(f"--stack: {STACK} of this host is no folder")
    return str(folder)


def _clear_leftover(at: Layout, say: Say) -> None:
    """What is in the way of a new cluster of this name: a whole one is never removed unasked, nor anything that runs."""
    name = at.name
    if at.ready and pids(at, ""):
        raise Conflict(
            f"cluster {name!r} is there already: `skep cluster status --name {name}` shows it, `skep cluster down --name {name}` removes it"
        )
    if at.ready:
        raise Conflict(
            f"cluster {name!r} is there but does not run: `skep cluster start --name {name}` starts it, "
            f"`skep cluster down --name {name}` removes it"
        )
    if found := pids(at, ""):
        raise Conflict(
            f"something is left of an earlier cluster {name!r} and runs (process {found[0]}): `skep cluster down --name {name}` removes it"
        )
    say("removing what an earlier attempt has left")
    _remove(at)


# -- what there is


def status(name: str) -> list[dict[str, Any]]:
    """One row a node: name, role, address, state (running or dead), pid, socket."""
    at = whole(name)
    rows = []
    for node in at.members:
        pid = daemon_pid(at, node)
        planned = at.node(node)
        rows.append(
            {
                "node": node,
                "role": REGISTRY if planned is None else "manager" if planned.manager else "worker",
                "address": at.address(node),
                "state": "running" if pid else "stopped" if made(at, node) and node != REGISTRY else "dead",
                "pid": pid,
                "socket": str(at.socket(node)) if planned else "",
            }
        )
    return rows


# -- down


def down(name: str, *, say: Say) -> bool:
    """Remove everything of the cluster; False when there was nothing. Needs no state and may be repeated.

    Raises Busy while another process is making it, SkepError with the reason when something could not be removed.
    """
    at = layout(name)
    _need_root("down removes namespaces and mounts")
    with ExitStack() as alone:
        try:
            alone.enter_context(traces.locked(at.lock, name, patience=1.0))
        except traces.Busy as busy:
            if busy.pid not in pids(at, ""):
                raise
            # the cluster's own host socket is at work for somebody
            traces.end_processes(at.cgroup_trees("host"))
            alone.enter_context(traces.locked(at.lock, name, patience=10.0))
        at = layout(name)
        there = at.there()
        _remove(at)
    if there:
        say(f"cluster {name} is gone")
    return there


def _remove(at: Layout) -> None:
    """Each step is tried whatever the ones before it said; the first complaint is raised at the end."""
    steps: list[Callable[[], None]] = [
        lambda: traces.end_processes(at.cgroup_trees()),
        lambda: Underlay(at.name).destroy(),
        lambda: _remove_folder(at.run),
        lambda: _remove_folder(at.root),
        lambda: traces.remove_cgroups(at.cgroup_trees()),
        lambda: traces.leave_point(STACK, at.name),
        lambda: traces.release_folder(Path(at.root).parent),
        lambda: traces.release_folder(Path(at.run).parent),
    ]
    complaints = []
    for step in steps:
        try:
            step()
        except (SkepError, OSError) as error:
            complaints.append(error)
    if complaints:
        first = complaints[0]
        raise first if isinstance(first, SkepError) else SkepError(f"{first.filename or at.name}: {first.strerror}")


def _remove_folder(path: str) -> None:
    traces.unmount_all(path)
    shutil.rmtree(path, ignore_errors=True)
    if os.path.exists(path):
        shutil.rmtree(path)
