"""Where the parts of a one-machine cluster lie and what they are called: everything follows from the cluster's name.

Nothing of a cluster is anywhere else, so that `down` finds it all without any state, also after a kill -9 of everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from skep.errors import Invalid

CGROUP = Path("/sys/fs/cgroup")
WANTED = ("pids", "cpuacct", "cpu", "memory", "systemd")
"""Controllers (cgroup v1) in which a node's daemon is kept apart from its containers: to be found, limited and measured."""
REGISTRY = "registry"
STACK = Path("/stack")
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,14}[a-z0-9])?")
SOCKET_PATH = 107
"""Bytes that the path of a unix socket may have."""


@dataclass
class NodePlan:
    name: str
    address: str
    manager: bool = False


@dataclass
class Layout:
    """A cluster's names and paths, and what was asked of it; saved as cluster.json before anything is made."""

    name: str
    root: str
    run: str
    subnet: str = ""
    nodes: list[NodePlan] = field(default_factory=list)
    registry: bool = False
    stand_ins: bool = False
    """The registry stands in for Docker Hub: the nodes ask it first."""
    publish: list[tuple[int, int]] = field(default_factory=list)
    """(port of this host, port of the manager node)."""
    stack: str = ""
    created: int = 0
    """ns since 1970."""
    ready: bool = False
    """`up` has come to its end: what is there is more than a piece."""

    @property
    def state(self) -> Path:
        return Path(self.root) / "cluster.json"

    @property
    def lock(self) -> Path:
        return Path(f"{self.run}.lock")

    @property
    def host_socket(self) -> Path:
        return Path(self.run) / "host.sock"

    @property
    def registry_address(self) -> str:
        return self.host_address(5)

    def host_address(self, last: int) -> str:
        return f"{self.subnet.rpartition('.')[0]}.{last}"

    def address(self, node: str) -> str:
        found = self.node(node)
        return found.address if found else self.registry_address

    def node(self, name: str) -> NodePlan | None:
        return next((n for n in self.nodes if n.name == name), None)

    @property
    def members(self) -> list[str]:
        """The nodes, and the registry where there is one."""
        return [n.name for n in self.nodes] + ([REGISTRY] if self.registry else [])

    def data(self, node: str) -> Path:
        return Path(self.root) / node

    def run_of(self, node: str) -> Path:
        """The node's /run, as this host sees it."""
        return Path(self.run) / node

    def socket(self, node: str) -> Path:
        """The node's API socket, as this host sees it (inside it is /run/skep/docker.sock)."""
        return self.run_of(node) / "skep" / "docker.sock"

    def namespace(self, node: str, kind: str) -> Path:
        return Path(self.run) / "ns" / f"{node}.{kind}"

    def log(self, node: str) -> Path:
        return self.data(node) / ("registry.log" if node == REGISTRY else "skepd.log")

    @property
    def cgroup(self) -> str:
        """Below each controller."""
        return f"skep-{self.name}"

    def cgroups(self, part: str) -> list[Path]:
        """The cgroup of one part (`manager/daemon`, `host`, `registry`) in each controller that is mounted."""
        if (CGROUP / "cgroup.controllers").exists():
            return [CGROUP / self.cgroup / part]
        return [CGROUP / c / self.cgroup / part for c in WANTED if (CGROUP / c).is_dir()]

    def cgroup_trees(self, part: str = "") -> list[Path]:
        """What there is of this cluster, or of one part of it, in every controller."""
        if (CGROUP / "cgroup.controllers").exists():
            tops = [CGROUP]
        else:
            tops = [p for p in CGROUP.iterdir() if p.is_dir() and not p.is_symlink()] if CGROUP.is_dir() else []
        return [tree for top in tops if (tree := top / self.cgroup / part).is_dir()]

    def there(self) -> bool:
        """Anything of it is on this host."""
        return Path(self.root).exists() or Path(self.run).exists() or bool(self.cgroup_trees())

    def save(self) -> None:
        temporary = self.state.with_suffix(".tmp")
        with temporary.open("w") as file:
            json.dump(asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.state)


def layout(name: str) -> Layout:
    """The layout of a cluster of this name: as saved, or bare where nothing (or nothing legible) is saved."""
    if not NAME.fullmatch(name):
        raise Invalid(f"cluster name {name!r}: must be 1 to 16 of a-z, 0-9 and -, and begin and end with a letter or digit")
    out = Layout(name=name, root=f"{base_root()}/{name}", run=f"{base_run()}/{name}")
    if len(os.fsencode(out.socket("worker00"))) > SOCKET_PATH:
        raise Invalid(f"$SKEP_CLUSTERS_RUN {base_run()}: too long, the path of a socket in it would have more than {SOCKET_PATH} bytes")
    try:
        return _read(out, json.loads(out.state.read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return out


def _read(bare: Layout, saved: dict[str, Any]) -> Layout:
    known = {f.name for f in fields(Layout)} - {"name", "root", "run"}
    values = {k: v for k, v in saved.items() if k in known}
    values["nodes"] = [NodePlan(str(n["name"]), str(n["address"]), bool(n["manager"])) for n in saved["nodes"]]
    values["publish"] = [(int(a), int(b)) for a, b in saved["publish"]]
    return Layout(name=bare.name, root=bare.root, run=bare.run, **values)


def base_root() -> str:
    path = _folder("SKEP_CLUSTERS_ROOT", "/var/lib/skep/clusters")
    if path.startswith("/run/"):
        raise Invalid(f"$SKEP_CLUSTERS_ROOT {path}: must not be below /run, of which each node has its own")
    return path


def base_run() -> str:
    return _folder("SKEP_CLUSTERS_RUN", "/run/skep/clusters")


def _folder(variable: str, default: str) -> str:
    path = os.environ.get(variable) or default
    if not os.path.isabs(path):
        raise Invalid(f"${variable} {path}: must be an absolute path")
    return os.path.normpath(path)


def names() -> list[str]:
    """Clusters of which anything is on this machine, whole or not."""
    found = {p.name for base in (base_root(), base_run()) for p in Path(base).glob("*") if p.is_dir()}
    found |= {p.name.removeprefix("skep-") for p in [*CGROUP.glob("skep-*"), *CGROUP.glob("*/skep-*")] if p.is_dir()}
    return sorted(n for n in found if NAME.fullmatch(n))


def default_subnet(name: str, taken: set[str]) -> str:
    """A /24 that follows from the cluster's name, `10.210.0.0` to `10.249.255.0`; the next free one where it is taken."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % (40 * 256)
    for i in range(40 * 256):
        number = (start + i) % (40 * 256)
        subnet = f"10.{210 + number // 256}.{number % 256}.0"
        if subnet not in taken:
            return subnet
    raise Invalid("no free /24 is left for the cluster's underlay between 10.210.0.0 and 10.249.255.0")
