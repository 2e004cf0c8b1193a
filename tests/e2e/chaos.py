"""Random changes of a real cluster. The seed makes the steps; the cluster's own timing does not come from it, so a seed repeats what was
done and not each race. What is wished for, and what must hold after each step, is in chaos_truth.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos_truth import PORT, PUBLISHED, RUNNING, Service, Wished
from conftest import ECHO, World

from skep.datapath import rules
from skep.local import calls, cluster, nodes


class Chaos(Wished):
    # steps: what a user does

    def create_network(self) -> str:
        if len(self.networks) >= 4:
            return self.remove_network()
        name = self.new("net")
        made = self.api("POST", "/networks/create", {"Name": name, "Driver": "overlay", "Attachable": True})
        self.networks[name] = made["Id"]
        self.create_service(name)
        return f"create network {name} and a service on it"

    def remove_network(self) -> str:
        name = self.rng.choice(sorted(self.networks))
        if len(self.networks) < 2:
            return "nothing"
        for container in [c for c, (_, on) in self.plain.items() if name in on]:
            self.forget(container)
        for service in [s for s, known in self.services.items() if name in known.networks]:
            self.drop_service(service)
        del self.networks[name]
        self.until(lambda: self.accepted("DELETE", f"/networks/{name}"), f"network {name} can be removed")
        return f"remove network {name} and all that is on it"

    def accepted(self, method: str, target: str) -> bool:
        try:
            self.api(method, target)
        except calls.SkepError:
            return False
        return True

    def create_service(self, network: str = "") -> str:
        if len(self.services) >= 5:
            return self.remove_service()
        # a stack's network could not be removed with it if others used it
        free = [network] if network else sorted(n for n in self.networks if n != "stk_default")
        if not free:
            return self.create_network()
        name = self.new("svc")
        on = self.rng.sample(free, min(len(free), self.rng.choice((1, 1, 2))))
        published = PUBLISHED + self.number if self.rng.random() < 0.4 else 0
        dnsrr = not published and self.rng.random() < 0.25
        wanted = self.services[name] = Service(on, self.rng.randint(1, 4), dnsrr, published)
        ports = [{"Protocol": "tcp", "TargetPort": PORT, "PublishedPort": published, "PublishMode": "ingress"}] if published else []
        self.world.create(
            name,
            wanted.replicas,
            template={"Networks": [{"Target": self.networks[n], "Aliases": [f"{name}-alias"]} for n in on]},
            UpdateConfig={"Parallelism": 2, "Order": self.rng.choice(("start-first", "stop-first")), "Monitor": 100_000_000},
            EndpointSpec={"Mode": "dnsrr" if dnsrr else "vip", **({"Ports": ports} if ports else {})},
        )
        kind = " dnsrr" if dnsrr else f" port {published}" if published else ""
        return f"create service {name} x{wanted.replicas} on {'+'.join(on)}{kind}"

    def drop_service(self, name: str) -> None:
        self.api("DELETE", f"/services/{name}")
        del self.services[name]

    def remove_service(self) -> str:
        if len(self.services) < 2:
            return self.create_service()
        name = self.rng.choice(sorted(self.services))
        self.drop_service(name)
        return f"remove service {name}"

    def change(self, name: str, change: Callable[[dict[str, Any]], None], kind: str = "services") -> None:
        """Whoever else has changed it meanwhile: again."""

        def written() -> bool:
            found = self.api("GET", f"/{kind}/{name}")
            change(found["Spec"])
            try:
                self.api("POST", f"/{kind}/{found['ID']}/update?version={found['Version']['Index']}", found["Spec"])
            except calls.SkepError as error:
                if "out of sequence" not in str(error):
                    raise
                return False
            return True

        self.until(written, f"{name} is changed", 10)

    def scale(self) -> str:
        if not self.services:
            return self.create_service()
        name = self.rng.choice(sorted(self.services))
        replicas = self.rng.choice((0, 1, 1, 2, 3, 4, 6))
        self.services[name].replicas = replicas
        self.change(name, lambda spec: spec["Mode"]["Replicated"].update(Replicas=replicas))
        return f"scale {name}={replicas}"

    def redeploy(self) -> str:
        if not self.services:
            return self.create_service()
        name = self.rng.choice(sorted(self.services))

        def again(spec: dict[str, Any]) -> None:
            spec["TaskTemplate"]["ForceUpdate"] = spec["TaskTemplate"].get("ForceUpdate", 0) + 1

        self.change(name, again)
        return f"redeploy {name}"

    def drain(self) -> str:
        if self.drained and self.rng.random() < 0.6:
            node = self.rng.choice(sorted(self.drained))
            self.drained.discard(node)
            wanted = "active"
        else:
            free = [n for n in self.node_names if n not in self.drained]
            if len(free) < 3:
                return "nothing"
            node = self.rng.choice(free)
            self.drained.add(node)
            wanted = "drain"
        self.change(node, lambda spec: spec.update(Availability=wanted), "nodes")
        if wanted == "drain":
            # a plain container loses its place on a node that is drained, as in Docker; nobody gives it back
            for container in [c for c, (on, _) in self.plain.items() if on == node]:
                self.forget(container)
        return f"{wanted} {node}"

    def stack(self) -> str:
        """A stack removed and deployed again at once."""
        file = Path(self.world.at.root) / "chaos.yml"
        brisk = "restart_policy: {delay: 200ms}, update_config: {monitor: 100ms}"
        file.write_text(
            f"services:\n  a: {{image: '{ECHO}', deploy: {{replicas: 2, {brisk}}}}}\n  b: {{image: '{ECHO}', deploy: {{{brisk}}}}}\n"
        )
        again = "stk_a" in self.services
        if again:
            self.world.docker("stack", "rm", "stk")
        self.world.docker("stack", "deploy", "-c", str(file), "stk")
        self.networks["stk_default"] = self.api("GET", "/networks/stk_default")["Id"]
        self.services["stk_a"], self.services["stk_b"] = Service(["stk_default"], 2), Service(["stk_default"], 1)
        return f"stack {'removed and ' if again else ''}deployed"

    def attach(self) -> str:
        """A plain container comes, goes, or moves between networks."""
        if len(self.plain) >= 3 or (self.plain and self.rng.random() < 0.5):
            name = self.rng.choice(sorted(self.plain))
            node, on = self.plain[name]
            others = sorted(n for n in self.networks if n not in on and n != "stk_default")
            if len(on) > 1 and self.rng.random() < 0.5:
                left = on.pop()
                self.world.docker("network", "disconnect", left, name, node=node)
                return f"disconnect {name} on {node} from {left}"
            if others and self.rng.random() < 0.6:
                on.append(self.rng.choice(others))
                self.world.docker("network", "connect", on[-1], name, node=node)
                return f"connect {name} on {node} to {on[-1]}"
            self.forget(name)
            return f"remove container {name} on {node}"
        fit = [n for n in self.node_names if n not in self.drained]
        free = sorted(n for n in self.networks if n != "stk_default")
        if not free:
            return "nothing"
        name, node, network = self.new("box"), self.rng.choice(fit), self.rng.choice(free)
        self.world.docker("run", "-d", "--name", name, "--network", network, ECHO, node=node)
        self.plain[name] = (node, [network])
        return f"run container {name} on {node} on {network}"

    def forget(self, container: str) -> None:
        node, _ = self.plain.pop(container)
        self.world.docker("rm", "-f", container, node=node)

    # steps: what happens to a cluster

    def kill_unheard(self) -> str:
        running = [t for t in self.tasks() if t["Status"]["State"] == t["DesiredState"] == RUNNING and t.get("ServiceID")]
        if not running:
            return "nothing"
        self.victim = self.rng.choice(sorted(running, key=lambda t: (t["ServiceID"], t.get("Slot", 0))))
        try:
            os.kill(self.victim["Status"]["ContainerStatus"]["PID"], signal.SIGKILL)
        except ProcessLookupError:
            pass
        return f"kill a task of {self.title(self.victim)}"

    def kill(self) -> str:
        """What follows is judged when the cluster knows of it."""
        done = self.kill_unheard()
        if done == "nothing":
            return done
        victim = self.victim
        self.until(lambda: not any(t["ID"] == victim["ID"] and t["Status"]["State"] == RUNNING for t in self.tasks()), "it has ended", 30)
        return done

    def restart(self) -> str:
        node, how = self.rng.choice(self.node_names), self.rng.choice(("SIGTERM", "SIGKILL"))
        at = self.world.at
        cluster.stop_node(at, node, name=how)
        cluster.start_node(at, node)
        cluster.wait_for_socket(at, node)
        return f"skepd of {node} ended by {how} and started"

    def absent(self) -> str:
        """skepd of a worker is away while something changes."""
        node = self.rng.choice(self.node_names[1:])
        at = self.world.at
        cluster.stop_node(at, node, name=self.rng.choice(("SIGTERM", "SIGKILL")))
        meanwhile = self.rng.choice((self.scale, self.kill_unheard, self.redeploy, self.create_service, self.remove_service))()
        cluster.start_node(at, node)
        cluster.wait_for_socket(at, node)
        return f"skepd of {node} away, meanwhile: {meanwhile}"

    def partition(self) -> str:
        node = self.rng.choice(self.node_names)
        seconds = self.rng.choice((0.5, 1.0, 2.0))
        if self.long and self.rng.random() < 0.15:
            seconds = 22.0
        way = self.rng.choice(("link", "nft"))
        meanwhile = ""
        end = time.monotonic() + seconds
        with Cut(self.world, node, way):
            if node != self.node_names[0] and self.rng.random() < 0.6:
                meanwhile = ", meanwhile: " + self.rng.choice((self.scale, self.kill_unheard, self.redeploy))()
            threading.Event().wait(max(0.0, end - time.monotonic()))
        return f"{node} cut off for {seconds} s ({way}){meanwhile}"

    def kill_resolver(self) -> str:
        node = self.rng.choice(self.node_names)
        for pid in cluster.pids(self.world.at, f"{node}/daemon"):
            try:
                if b"skep.datapath.resolver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        return f"resolver of {node} killed"

    def storm(self) -> str:
        """Several things at once."""
        some = self.rng.sample((self.scale, self.kill, self.drain, self.redeploy, self.restart, self.kill_resolver, self.absent), 3)
        return "at once: " + "; ".join(step() for step in some)

    # steps: somebody meddles with a kernel

    def damage(self) -> str:
        """What nobody but `network check` notices until the next comparison: it must find it, and mend it."""
        node = self.rng.choice(self.node_names)
        devices = self.router(node, "ip", "-o", "link", "show", "type", "vxlan").split("\n")
        links = sorted(line.split(": ")[1].split("@")[0] for line in devices if line)
        routes = sorted(
            line.split()[0] for line in self.router(node, "ip", "route").splitlines() if " dev v-" in line or " via 169" in line
        )
        link, before = self.rng.choice(links), self.mended(node)
        entries = sorted(self.router(node, "bridge", "fdb", "show", "dev", link).splitlines())
        kind = self.rng.choice(("flush", "table", "device", "route", "forwarding", "neighbour", "down"))
        if kind in ("route", "forwarding", "neighbour") and not (routes and entries):
            kind = "device"
        match kind:
            case "flush":
                self.router(node, "nft", "flush", "ruleset")
                done = "nft flush ruleset"
            case "table":
                self.router(node, "nft", "flush", "set", "ip", "skep_skep", "samenet")
                done = "nft flush set samenet"
            case "device":
                self.router(node, "ip", "link", "del", link)
                done = f"ip link del {link}"
            case "route":
                route = self.rng.choice(routes)
                self.router(node, "ip", "route", "del", route)
                done = f"ip route del {route}"
            case "forwarding":
                mac = self.rng.choice(entries).split()[0]
                self.router(node, "bridge", "fdb", "del", mac, "dev", link)
                done = f"bridge fdb del {mac} dev {link}"
            case "neighbour":
                self.router(node, "ip", "neigh", "flush", "nud", "permanent", "dev", link)
                done = f"ip neigh flush dev {link}"
            case _:
                self.router(node, "ip", "link", "set", link, "down")
                done = f"ip link set {link} down"
        found, mended = self.check(), self.check(repair=True)
        if self.mended(node) == before:
            raise AssertionError(f"not mended: {done} on {node}: {found} {mended}")
        # its own comparison, once a minute, may come before us
        by_itself = not any(p["mended"] for p in mended)
        assert by_itself or any(p["node"] == node and p["kind"] == "kernel" for p in found), f"not noticed: {done} on {node}: {found}"
        return f"on {node}: {done}"

    def mended(self, node: str) -> int:
        """How often its log says so."""
        return self.world.at.log(node).read_bytes().count(b" mended: ")

    # playing

    def steps(self) -> list[tuple[Callable[[], str], int]]:
        return [
            (self.scale, 6), (self.kill, 4), (self.drain, 4), (self.redeploy, 4), (self.restart, 4), (self.absent, 3), (self.partition, 3),
            (self.kill_resolver, 2), (self.damage, 5), (self.create_network, 2), (self.remove_network, 1), (self.create_service, 2),
            (self.remove_service, 2), (self.stack, 2), (self.attach, 4), (self.storm, 3),
        ]  # fmt: skip

    def begin(self) -> None:
        """Something to play with."""
        self.create_network()
        self.create_network()
        self.create_service()
        self.settle()

    def play(self, count: int, *, tell: Callable[[str], None] = lambda line: None) -> None:
        choices, weights = zip(*self.steps(), strict=True)
        for number in range(1, count + 1):
            step = self.rng.choices(choices, weights)[0]
            began = time.monotonic()
            try:
                done = f"{number:3}. {step.__name__}: "
                done += step()
                self.said.append(done)
                acted = time.monotonic()
                self.settle()
            except Exception as error:
                if self.said[-1:] != [done]:
                    self.said.append(f"{done} ... {type(error).__name__}")
                raise AssertionError(f"{error}\nthe last of {len(self.said)} steps:\n" + "\n".join(self.said[-40:])) from error
            took = time.monotonic() - began
            self.slowest[step.__name__] = max(self.slowest.get(step.__name__, 0.0), took)
            tell(f"{done} [{acted - began:.1f} + {time.monotonic() - acted:.1f} s]{self.waited}")

    def end(self) -> None:
        """All of it goes, and nothing is left in any kernel."""
        for container in list(self.plain):
            self.forget(container)
        for service in list(self.services):
            self.drop_service(service)
        for network in list(self.networks):
            self.until(lambda network=network: self.accepted("DELETE", f"/networks/{network}"), f"network {network} can be removed")  # type: ignore[misc]
        self.networks.clear()
        self.settle()


class Cut:
    """One node's wire, cut while this is entered."""

    def __init__(self, world: World, node: str, way: str) -> None:
        self.wire = Path(world.at.run) / "net" / "underlay"
        self.address = world.at.address(node)
        self.link = f"n-{rules.tag(node, 12)}"
        self.way = way

    def run(self, *command: str) -> None:
        subprocess.run(["nsenter", f"--net={self.wire}", *command], check=True, capture_output=True)

    def __enter__(self) -> None:
        if self.way == "link":
            self.run("ip", "link", "set", self.link, "down")
        else:
            self.run("nft", f"add table bridge cut; add chain bridge cut f {{ type filter hook forward priority 0; }}; "
                            f"add rule bridge cut f iifname {self.link} drop; add rule bridge cut f oifname {self.link} drop")  # fmt: skip

    def __exit__(self, *error: object) -> None:
        if self.way == "link":
            self.run("ip", "link", "set", self.link, "up")
        else:
            self.run("nft", "delete", "table", "bridge", "cut")


def last_words(world: World, lines: int = 15) -> str:
    """The ends of all nodes' logs, for a failure."""
    return "\n".join(f"-- {n.name}\n" + "\n".join(nodes._read(world.at.log(n.name)).splitlines()[-lines:]) for n in world.at.nodes)
