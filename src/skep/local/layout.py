"""Where the parts of a one-machine cluster lie and what they are called: everything follows from the cluster's name.

Nothing of a cluster is anywhere else, so that `down` finds it all without any state, also after a kill -9 of everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from skep.errors import Invalid

CGROUP = Path("/sys/fs/cgroup")
WANTED = ("pids", "cpuacct", "cpu", "memory", "systemd")
"""Controllers (cgroup v1) in which a node's daemon is kept apart from its containers: to be found, limited and measured."""


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
    publish: list[tuple[int, int]] = field(default_factory=list)
    """(port of this host, port of the manager node)."""
    stack: str = ""
    made_stack_point: bool = False
    """/stack did not exist on this host: `down` removes it."""

    @property
    def state(self) -> Path:
        return Path(self.root) / "cluster.json"

    @property
    def host_socket(self) -> Path:
        return Path(self.run) / "host.sock"

    @property
    def registry_address(self) -> str:
        return self.host_address(5)

    def host_address(self, last: int) -> str:
        return f"{self.subnet.rpartition('.')[0]}.{last}"

    def node(self, name: str) -> NodePlan | None:
        return next((n for n in self.nodes if n.name == name), None)

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
        return self.data(node) / "skepd.log"

    @property
    def cgroup(self) -> str:
        """Below each controller."""
        return f"skep-{self.name}"

    def cgroups(self, part: str) -> list[Path]:
        """The cgroup of one part (`manager/daemon`, `host`, `registry`) in each controller that is mounted."""
        if (CGROUP / "cgroup.controllers").exists():
            return [CGROUP / self.cgroup / part]
        return [CGROUP / c / self.cgroup / part for c in WANTED if (CGROUP / c).is_dir()]

    def cgroup_trees(self) -> list[Path]:
        """All trees of this cluster, in every controller."""
        if (CGROUP / "cgroup.controllers").exists():
            tops = [CGROUP]
        else:
            tops = [p for p in CGROUP.iterdir() if p.is_dir() and not p.is_symlink()]
        return [t / self.cgroup for t in tops if (t / self.cgroup).is_dir()]

    def save(self) -> None:
        self.state.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.state.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        os.replace(temporary, self.state)


def layout(name: str) -> Layout:
    """The layout of a cluster of this name: as saved, or bare."""
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,14}[a-z0-9])?", name):
        raise Invalid(f"cluster name {name!r}: must be 1 to 16 of a-z, 0-9 and -, and begin and end with a letter or digit")
    out = Layout(name=name, root=f"{base_root()}/{name}", run=f"{base_run()}/{name}")
    try:
        saved = json.loads(out.state.read_text())
    except (OSError, ValueError):
        return out
    saved["nodes"] = [NodePlan(**n) for n in saved["nodes"]]
    saved["publish"] = [(int(a), int(b)) for a, b in saved["publish"]]
    return Layout(**saved)


def base_root() -> str:
    return os.environ.get("SKEP_CLUSTERS_ROOT", "/var/lib/skep/clusters")


def base_run() -> str:
    return os.environ.get("SKEP_CLUSTERS_RUN", "/run/skep/clusters")


def names() -> list[str]:
    """Clusters of which anything is known on this machine."""
    found = {p.parent.name for p in Path(base_root()).glob("*/cluster.json")}
    return sorted(found)


def default_subnet(name: str, taken: set[str]) -> str:
    """A /24 that follows from the cluster's name, `10.210.0.0` to `10.249.255.0`; the next free one where it is taken."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % (40 * 256)
    for i in range(40 * 256):
        number = (start + i) % (40 * 256)
        subnet = f"10.{210 + number // 256}.{number % 256}.0"
        if subnet not in taken:
            return subnet
    raise Invalid("no free /24 is left for the cluster's underlay between 10.210.0.0 and 10.249.255.0")
