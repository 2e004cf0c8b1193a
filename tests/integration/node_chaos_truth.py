"""What a quiet node must look like: Docker's answers here, disk and kernel there, a sentence for each difference.

Nothing here knows how skepd works inside; it knows where things are (docs/engine.md, docs/network.md, docs/images.md) and reads them:
/proc, cgroups, mounts, the router's links and routes, the files. `differences` may be asked while something is still ending: ask again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from node_chaos_world import ChaosWorld

ID = re.compile(r"[0-9a-f]{64}")
LEFTOVER = re.compile(r"^\.|\.(new|tmp|gone\d*)$")
CGROUPS = Path("/sys/fs/cgroup")
TOLERATED_FDS = 24
"""Open beyond those of the start and of what runs: connections of the moment, threads' namespaces."""


def differences(world: ChaosWorld, known: Containers, base_fds: int) -> list[str]:
    return [
        *in_processes(world, known),
        *in_cgroups(world, known),
        *in_mounts(world, known),
        *in_network(world, known),
        *in_folders(world, known),
        *in_images(world),
        *in_volumes(world, known),
        *in_daemon(world, known, base_fds),
    ]


class Containers:
    """Docker's word: inspect of all containers, and what follows from it."""

    def __init__(self, world: ChaosWorld) -> None:
        _, listed = world.api("GET", "/containers/json?all=1")
        self.all: dict[str, Any] = {}
        for one in listed:
            status, found = world.api("GET", f"/containers/{one['Id']}/json")
            if status == 200:
                self.all[one["Id"]] = found
        self.running = {id: one for id, one in self.all.items() if one["State"]["Running"] and not one["State"]["Restarting"]}

    @property
    def paused(self) -> set[str]:
        return {id for id, one in self.running.items() if one["State"]["Paused"]}

    @property
    def sandboxed(self) -> set[str]:
        return {id for id, one in self.running.items() if not one["HostConfig"]["NetworkMode"].startswith(("host", "container:"))}

    def short(self) -> list[str]:
        return [
            f"{one['Name']} {id[:12]} {one['State']['Status']} {one['State']['ExitCode']} {one['HostConfig']['NetworkMode']} "
            f"{[(name, place['IPAddress']) for name, place in one['NetworkSettings']['Networks'].items()]}"
            for id, one in self.all.items()
        ]

    def endpoints(self) -> dict[str, dict[str, str]]:
        """Network id -> container id -> address."""
        found: dict[str, dict[str, str]] = {}
        for id, one in self.running.items():
            for place in one["NetworkSettings"]["Networks"].values():
                if place["IPAddress"]:
                    found.setdefault(place["NetworkID"], {})[id] = place["IPAddress"]
        return found


def unlike(what: str, there: Iterable[str], wanted: Iterable[str]) -> list[str]:
    there, wanted = set(there), set(wanted)
    return [f"{what}: {one[:90]} is there and should not be" for one in sorted(there - wanted)] + [
        f"{what}: {one[:90]} is missing" for one in sorted(wanted - there)
    ]


def command_of(pid: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def group_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def in_processes(world: ChaosWorld, known: Containers) -> list[str]:
    """Each running container has its first process, in its cgroup, and a conmon (unless the test took it); nothing else runs."""
    name, said = world.folder.name, []
    monitors: dict[str, list[str]] = {}
    members: dict[str, set[str]] = {}
    assert world.daemon is not None
    own = {str(world.daemon.pid), str(world.registry.pid), str(world.holder.pid), str(os.getpid())}
    resolvers = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        words, group = command_of(pid), group_of(pid)
        inside = re.search(rf"/{name}/([0-9a-f]{{64}})", group)
        if inside:
            members.setdefault(inside[1], set()).add(pid)
        elif pid in own or not any(name in word for word in words):
            continue
        elif words[0].endswith("conmon"):
            id = next((word for word in words if ID.fullmatch(word)), "")
            if "-e" not in words:
                monitors.setdefault(id, []).append(pid)
        elif "skep.datapath.resolver" in words:
            resolvers.append(pid)
        elif "exec" in words and known.paused & set(words):
            continue  # a health check that was caught by the pause
        elif "docker" not in words[0]:
            said.append(f"process {pid} should not be there: {' '.join(words)[:160]}")
    for id, one in known.running.items():
        if str(one["State"]["Pid"]) not in members.get(id, set()):
            said.append(f"container {one['Name']} {id[:12]} is said to run as {one['State']['Pid']}; in its cgroup are {members.get(id)}")
    said += [f"container {id[:12]} does not run, yet {pids} are in its cgroup" for id, pids in members.items() if id not in known.running]
    for id, pids in monitors.items():
        if id not in known.running or len(pids) > 1:
            said.append(f"conmon {pids} of container {id[:12]}, which {'runs once' if id in known.running else 'does not run'}")
    if len(resolvers) != 1:
        said.append(f"resolvers: {resolvers}")
    return said + zombies(world.daemon.pid)


def zombies(parent: int) -> list[str]:
    said = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, above = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state == "Z" and int(above) == parent:
            said.append(f"process {pid} is a zombie of skepd's")
    return said


def in_cgroups(world: ChaosWorld, known: Containers) -> list[str]:
    tops = [CGROUPS] if (CGROUPS / "cgroup.controllers").exists() else [top for top in CGROUPS.iterdir() if top.is_dir()]
    found = {f"{top.name}:{folder.name}" for top in tops for folder in (top / world.folder.name).glob("*") if folder.is_dir()}
    wanted = {f"{top.name}:{id}" for top in tops if (top / world.folder.name).exists() for id in known.running}
    # a hybrid host's empty v2 tree has none
    return unlike("cgroup", {f for f in found if not f.startswith("unified:")}, {w for w in wanted if not w.startswith("unified:")})


def in_mounts(world: ChaosWorld, known: Containers) -> list[str]:
    """Root file systems, shared memory, parts of volumes and pins: of what runs, and nothing else."""
    points = [line.split()[4] for line in world.run_inside("cat", "/proc/self/mountinfo").splitlines()]
    run = f"{world.folder}/r"
    roots, others, pins = set(), set(), set()
    for point in points:
        rest = point.removeprefix(f"{run}/")
        if rest == point:
            continue
        kind, _, more = rest.partition("/")
        if kind == "c":
            (roots if more.endswith("/rootfs") else others).add(more.split("/")[0])
        elif rest.startswith("network/netns/"):
            pins.add(rest.rpartition("/")[2])
        elif kind == "volumes":
            others.add("")
    # one that was made and never started keeps its mount until its first end, or a restart of skepd
    fresh = {id for id, one in known.all.items() if one["State"]["Status"] == "created"}
    said = unlike("root file system mounted", roots - fresh, set(known.running))
    said += [f"a mount of container {id[:12]}, which does not run" for id in others if id not in known.running and id not in fresh]
    return said + unlike("pin of a namespace", pins, known.sandboxed)


def in_network(world: ChaosWorld, known: Containers) -> list[str]:
    run, said = world.folder / "r" / "network", []
    said += unlike("place", names_in(run / "places"), known.sandboxed)
    said += unlike("pin", names_in(run / "netns"), known.sandboxed)
    endpoints = known.endpoints()
    # who was on a network and left the last one is still answered; who was started without any is not
    asks = {id for places in endpoints.values() for id in places}
    lost = {id for id in known.sandboxed if not known.running[id]["NetworkSettings"]["Networks"]}
    said += unlike("resolver's sandbox", set(names_in(world.folder / "r" / "resolver" / "sandboxes")) - lost, asks)
    for folder in (world.folder / "d" / "networks").iterdir():
        if not folder.is_dir():
            said.append(f"leftover file {folder}")
            continue
        wanted = endpoints.get(folder.name, {})
        said += unlike(f"address on network {folder.name[:12]}", set(names_in(folder)) - {"network.json"}, wanted)
        for id in set(wanted) & set(names_in(folder)):
            kept = json.loads((folder / id).read_text())["address"].partition("/")[0]
            if kept != wanted[id]:
                said.append(f"container {id[:12]} has {wanted[id]}, on disk is {kept}")
    said += in_places(world, known)
    links = [link for link in json.loads(world.run_in_router("ip", "-j", "link")) if link["ifname"].startswith("v-")]
    addresses = {address for places in endpoints.values() for address in places.values()}
    if len(links) != len(addresses):
        said.append(f"{len(links)} links for {len(addresses)} addresses")
    routes = [route for route in json.loads(world.run_in_router("ip", "-j", "route")) if route.get("dev", "").startswith("v-")]
    return said + unlike("route", {route["dst"] for route in routes}, addresses) + in_namespaces(world, known)


def in_places(world: ChaosWorld, known: Containers) -> list[str]:
    """Ports are published as Docker shows them, and a container's own name is among those that are answered."""
    said = []
    for id in known.sandboxed:
        one = known.running[id]
        shown = {(name, binding["HostPort"]) for name, bindings in one["NetworkSettings"]["Ports"].items() for binding in bindings or ()}
        file = world.folder / "r" / "network" / "places" / id
        laid = json.loads(file.read_text()).get("ports", []) if file.exists() else []
        said += unlike(f"port of container {id[:12]}", (f"{p['target']}/{p.get('protocol', 'tcp')}->{p['port']}" for p in laid),
                       (f"{name}->{port}" for name, port in shown))  # fmt: skip
        for network, place in one["NetworkSettings"]["Networks"].items():
            if network not in ("none", "bridge") and one["Name"][1:] not in (place.get("DNSNames") or ()):
                said.append(f"container {one['Name']} is answered as {place.get('DNSNames')} on network {network}")
    return said


def in_namespaces(world: ChaosWorld, known: Containers) -> list[str]:
    """A container is in the very namespace that is pinned for it."""
    script = "; ".join(f"stat -Lc '{id} %i' {world.folder}/r/network/netns/{id}" for id in known.sandboxed) or "true"
    inodes = dict(line.split() for line in world.run_inside("sh", "-c", f"{{ {script}; }} 2>/dev/null; true").splitlines())
    said = []
    for id in known.sandboxed & set(inodes):
        try:
            mine = os.stat(f"/proc/{known.running[id]['State']['Pid']}/ns/net").st_ino
        except OSError:
            mine = -1
        if str(mine) != inodes[id]:
            said.append(f"container {id[:12]} is not in the namespace that is pinned for it")
    return said


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def in_folders(world: ChaosWorld, known: Containers) -> list[str]:
    data, run = world.folder / "d", world.folder / "r"
    said = unlike("folder of a container", names_in(data / "containers"), known.all)
    for id in known.all:
        there = {name for name in names_in(data / "containers" / id) if not name.startswith("log")}
        said += unlike(f"in container {id[:12]}'s folder", there, {"state", "upper", "work"})
    said += [f"bundle of {id[:12]}, which is gone" for id in names_in(run / "c") if id not in known.all]
    said += [f"exit code of {id[:12]}, which is {'running' if id in known.all else 'gone'}" for id in names_in(run / "exits")
             if id not in known.all or id in known.running]  # fmt: skip
    said += unlike("the runtime's state", names_in(run / "state"), known.running)
    said += [f"leftover of an exec: {name}" for name in names_in(run / "x") if not known.paused]
    for top in (run, run / "network", run / "resolver", data, data / "images", data / "images" / "images", data / "images" / "layers"):
        said += [f"leftover file {top}/{name}" for name in names_in(top) if LEFTOVER.search(name)]
    return said


def in_images(world: ChaosWorld) -> list[str]:
    """Layers are those of images, images those of the list."""
    images, said = world.folder / "d" / "images", []
    _, listed = world.api("GET", "/images/json?all=1")
    said += unlike("image", names_in(images / "images"), (f"{one['Id'].removeprefix('sha256:')}.json" for one in listed))
    layers: set[str] = set()
    for one in listed:
        status, whole = world.api("GET", f"/images/{one['Id']}/json")
        layers |= {layer.removeprefix("sha256:") for layer in whole["RootFS"]["Layers"]} if status == 200 else set()
    said += unlike("layer", names_in(images / "layers"), layers)
    links = {Path(os.readlink(link)).parent.name for link in (images / "l").iterdir()}
    return said + unlike("link to a layer", links, layers)


def in_volumes(world: ChaosWorld, known: Containers) -> list[str]:
    _, listed = world.api("GET", "/volumes")
    names = {one["Name"] for one in listed["Volumes"] or []}
    said = unlike("volume", names_in(world.folder / "d" / "volumes"), names)
    used = {mount["Name"]: one["Name"] for one in known.all.values() for mount in one["Mounts"] if mount["Type"] == "volume"}
    return said + [f"volume {name} of container {used[name]} is not there" for name in used.keys() - names]


def in_daemon(world: ChaosWorld, known: Containers, base_fds: int) -> list[str]:
    """It agrees with the kernel, and keeps nothing of what is gone."""
    assert world.daemon is not None
    told: Mapping[str, Any] = world.truth()
    said = [f"explain: {line}" for line in (*told["explain"], *told["names"])]
    said += [f"skepd keeps a place for {id[:12]}, which does not run" for id in told["placed"] if id not in known.running]
    if told["locks"] > len(known.all):
        said.append(f"skepd keeps {told['locks']} locks for {len(known.all)} containers")
    count = len(os.listdir(f"/proc/{world.daemon.pid}/fd"))
    if count > base_fds + 2 * len(known.running) + TOLERATED_FDS:
        said.append(f"skepd has {count} descriptors open; {base_fds} at its start, {len(known.running)} containers run")
    return said
