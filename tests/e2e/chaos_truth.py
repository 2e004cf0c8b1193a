"""A real cluster that is changed at random, and what must hold after each change: `settle` waits until the cluster says that all is as
it is wished for, `wrong` looks whether it is true: by what `skep network check` finds, and by questions asked from inside every
container. The changes are in chaos.py.
"""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from conftest import World
from inside import answers, inside, means

from skep.local import calls

PATIENCE = 60.0
"""Seconds for the cluster to come to what is wished for."""
TRUTH = 15.0
"""Seconds in which it must then be true."""
PORT = 8080
RUNNING, OVER = "running", {"complete", "shutdown", "failed", "rejected", "remove", "orphaned"}
PUBLISHED = 8400


@dataclass
class Service:
    networks: list[str]
    replicas: int
    dnsrr: bool = False
    published: int = 0


@dataclass
class Member:
    """A running container on networks of the cluster."""

    pid: int
    node: str
    what: str
    addresses: dict[str, str]
    """Network name -> address."""
    service: str = ""


@dataclass
class Wished:
    """What a cluster is to be, and what it is."""

    world: World
    rng: random.Random
    networks: dict[str, str] = field(default_factory=dict)
    """Name -> id."""
    services: dict[str, Service] = field(default_factory=dict)
    plain: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """Container -> (node, networks)."""
    drained: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
    victim: dict[str, Any] = field(default_factory=dict)
    long: bool = False
    """Also what takes long: nodes that are away until they are taken for lost."""
    number: int = 0
    waited: str = ""
    slowest: dict[str, float] = field(default_factory=dict)

    # what is there

    @property
    def node_names(self) -> list[str]:
        return [n.name for n in self.world.at.nodes]

    def api(self, method: str, target: str, body: Any = None) -> Any:
        return self.world.api(method, target, body)

    def new(self, kind: str) -> str:
        self.number += 1
        return f"{kind}{self.number}"

    def tasks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api("GET", "/tasks")
        return found

    def hosts(self) -> dict[str, str]:
        """Node id -> hostname."""
        return {n["ID"]: n["Description"]["Hostname"] for n in self.api("GET", "/nodes")}

    def title(self, task: dict[str, Any]) -> str:
        return f"{task.get('ServiceID', '')[:6]}.{task.get('Slot', '')} on {self.hosts().get(task.get('NodeID', ''))}"

    def router(self, node: str, *command: str) -> str:
        """In the router of a node."""
        at = self.world.at
        line = ["nsenter", f"--mount={at.namespace(node, 'mnt')}", "nsenter", "--net=/run/skep/network/router", *command]
        done = subprocess.run(line, capture_output=True, text=True)
        assert not done.returncode, f"{' '.join(command)} on {node}: {done.stderr}"
        return done.stdout

    # what must hold

    def check(self, *, repair: bool = False) -> list[dict[str, Any]]:
        """The problems that `skep network check` finds."""
        from skep.client import calls as api
        from skep.client.address import find_address
        from skep.client.unix import Engine

        engine = Engine(find_address(f"unix://{self.world.at.socket('manager')}", {}, None), timeout=90)
        try:
            lines = [json.loads(line) for line in engine.open(api.network_check("", repair)).lines()]
        finally:
            engine.close()
        assert "Done" in lines[-1], lines
        return [line["Problem"] for line in lines if "Problem" in line]

    def until(self, holds: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        end = time.monotonic() + seconds
        while not (found := holds()):
            if time.monotonic() > end:
                raise AssertionError(f"after {seconds:.0f} s still not so: {what}")
            threading.Event().wait(0.05)
        return found

    def unsettled(self) -> str:
        """Empty: the cluster says that all is as it is wished for."""
        try:
            found = self.api("GET", "/nodes")
            tasks, services = self.tasks(), {s["ID"]: s for s in self.api("GET", "/services")}
        except (calls.SkepError, OSError) as error:
            return f"the manager does not answer: {error}"
        for node in found:
            if node["Status"]["State"] != "ready":
                return f"node {node['Description']['Hostname']} is {node['Status']['State']}"
        if {s["Spec"]["Name"] for s in services.values()} != set(self.services):
            return f"services: {sorted(s['Spec']['Name'] for s in services.values())}"
        for service in services.values():
            if service.get("UpdateStatus", {}).get("State", "") in ("updating", "rollback_started"):
                return f"{service['Spec']['Name']} is being updated"
            mine = [t for t in tasks if t.get("ServiceID") == service["ID"]]
            running = [t for t in mine if t["Status"]["State"] == RUNNING and t["DesiredState"] == RUNNING]
            wanted = self.services[service["Spec"]["Name"]].replicas
            if len(running) != wanted:
                states = [(t.get("Slot"), t["DesiredState"], t["Status"]["State"], t["Status"].get("Err", "")) for t in mine]
                return f"{service['Spec']['Name']}: {len(running)} of {wanted} run: {[s for s in states if s[2] not in OVER]}"
            force = service["Spec"]["TaskTemplate"].get("ForceUpdate", 0)
            if any(t["Spec"].get("ForceUpdate", 0) != force for t in running):
                return f"{service['Spec']['Name']} has tasks of before"
        going = [t for t in tasks if t["Status"]["State"] not in OVER and t["DesiredState"] != RUNNING]
        if going:
            return f"tasks are still ending: {[(self.title(t), t['Status']['State'], t['DesiredState']) for t in going]}"
        strange = [t for t in tasks if t.get("ServiceID") and t["ServiceID"] not in services]
        return f"tasks of services that are gone: {[self.title(t) for t in strange]}" if strange else ""

    def members(self) -> list[Member]:
        hosts, named = self.hosts(), {s["ID"]: s["Spec"]["Name"] for s in self.api("GET", "/services")}
        out = []
        for task in self.tasks():
            if task["Status"]["State"] != RUNNING or not task.get("ServiceID"):
                continue
            on = {
                a["Network"]["Spec"]["Name"]: a["Addresses"][0].partition("/")[0]
                for a in task.get("NetworksAttachments") or ()
                if a.get("Addresses")
            }
            name = named[task["ServiceID"]]
            out.append(Member(task["Status"]["ContainerStatus"]["PID"], hosts[task["NodeID"]], f"{name}.{task.get('Slot')}", on, name))
        for name, (node, networks) in self.plain.items():
            found = json.loads(self.world.docker("inspect", name, node=node))[0]
            on = {n: found["NetworkSettings"]["Networks"][n]["IPAddress"] for n in networks}
            out.append(Member(found["State"]["Pid"], node, name, on))
        return out

    def wrong(self) -> list[str]:
        """What is not as it must be. Empty: all is well."""
        problems = [f"check: {p['node']}: {p['text']} ({p['advice']})" for p in self.check()]
        try:
            members = self.members()
        except (OSError, KeyError, AssertionError, calls.SkepError) as error:
            return [*problems, f"containers cannot be seen: {error!r}"]
        vips = self.vips()
        taken = [(n, a) for m in members for n, a in m.addresses.items()] + [(n, a) for (_, n), a in vips.items()]
        problems += [f"address {a} on {n} is given twice" for n, a in set(taken) if taken.count((n, a)) > 1]
        with ThreadPoolExecutor(max_workers=16) as pool:
            for said in pool.map(lambda member: self.seen_by(member, members, vips), members):
                problems += said
        problems += [
            f"port {s.published} of {name} on {n.name} does not answer"
            for name, s in self.services.items()
            if s.published and s.replicas
            for n in self.world.at.nodes
            if not answers([(n.address, s.published)], 2)
        ]
        return problems + self.leaked(members)

    def vips(self) -> dict[tuple[str, str], str]:
        ids = {n["Id"]: n["Name"] for n in self.api("GET", "/networks")}
        return {
            (service["Spec"]["Name"], ids[vip["NetworkID"]]): vip["Addr"].partition("/")[0]
            for service in self.api("GET", "/services")
            for vip in service.get("Endpoint", {}).get("VirtualIPs") or ()
        }

    def seen_by(self, me: Member, members: list[Member], vips: dict[tuple[str, str], str]) -> list[str]:
        """From inside one container: who ought to connect and does not, who ought not and does, which names mean something else."""
        mine = set(me.addresses) - {"ingress"}
        friends = {(a, PORT): m.what for m in members for n, a in m.addresses.items() if n in me.addresses}
        serving = {name for name, s in self.services.items() if s.replicas}
        friends |= {(a, PORT): f"service {s} on {n}" for (s, n), a in vips.items() if n in mine and s in serving}
        strangers = {(a, PORT): m.what for m in members for n, a in m.addresses.items() if n not in me.addresses}
        names: dict[str, frozenset[str]] = {}
        for name, service in self.services.items():
            shared = [n for n in service.networks if n in mine]
            names[name], names[f"tasks.{name}"] = frozenset(), frozenset()
            # a container's networks are asked in turn: what it has in common with a service on several may be any of them
            for network in shared:
                tasks = frozenset(m.addresses[network] for m in members if m.service == name)
                vip = vips.get((name, network))
                names |= {f"{name}.{network}": frozenset({vip}) if vip else tasks, f"tasks.{name}.{network}": tasks}
            if len(shared) == 1:
                names[name], names[f"tasks.{name}"] = names[f"{name}.{shared[0]}"], names[f"tasks.{name}.{shared[0]}"]
            elif shared:
                del names[name], names[f"tasks.{name}"]
        try:
            good = inside(me.pid, lambda: answers(friends, 3))
            bad = inside(me.pid, lambda: answers(strangers, 0.2))
            found = inside(me.pid, lambda: means(names))
        except OSError as error:
            return [f"{me.what} on {me.node} cannot be looked into: {error}"]
        here = f"{me.what} on {me.node}"
        out = [f"{here} does not connect to {friends[t]} at {t[0]}" for t in friends if t not in good]
        out += [f"{here} connects to {strangers[t]} at {t[0]}, on another network" for t in bad]
        return out + [f"for {here} {n} means {sorted(found[n])}, not {sorted(want)}" for n, want in names.items() if found[n] != want]

    def leaked(self, members: list[Member]) -> list[str]:
        """Namespaces, links and VXLAN devices are those of what runs, and no more."""
        out = []
        for node in self.node_names:
            here = [m for m in members if m.node == node]
            pins = self.inside_node(node, "ls", "/run/skep/network/netns").split()
            if len(pins) != len(here):
                out.append(f"{node} has {len(pins)} sandboxes for {len(here)} containers")
            lines = self.router(node, "ip", "-o", "link").splitlines()
            links = [line.split(": ")[1].partition("@")[0] for line in lines]
            places = sum(len(m.addresses) for m in here)
            if (found := sum(link.startswith("v-") for link in links)) != places:
                out.append(f"the router of {node} has {found} links for {places} places")
            wanted = {n for m in here for n in m.addresses} | {"ingress"}
            if (found := sum(link.startswith("vx") for link in links)) != len(wanted):
                out.append(f"the router of {node} has {found} VXLAN devices for {sorted(wanted)}")
        return out

    def inside_node(self, node: str, *command: str) -> str:
        at = self.world.at
        line = ["nsenter", f"--mount={at.namespace(node, 'mnt')}", *command]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    def settle(self) -> None:
        """Wait until it is so; `waited` says what was waited for longest after the first second."""
        self.waited = ""
        began = time.monotonic()
        while why := self.unsettled():
            self.wait(why, began, PATIENCE, "not settled")
        began = time.monotonic()
        while wrong := self.wrong():
            self.wait("\n  ".join(wrong[:30]), began, TRUTH, "after it settled not true")

    def wait(self, why: str, began: float, patience: float, what: str) -> None:
        took = time.monotonic() - began
        if took > patience:
            raise AssertionError(f"after {took:.0f} s {what}: {why}")
        if took > 1:
            self.waited = f"; {took:.0f} s for: {why[:300]}"
        threading.Event().wait(0.05)
