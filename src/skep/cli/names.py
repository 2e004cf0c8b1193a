"""Names for ids, images in their familiar form, which object a word means."""

from __future__ import annotations

from skep.client import calls
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.shell import Shell


def short(id: str) -> str:
    return id.removeprefix("sha256:")[:12]


def familiar(image: str) -> str:
    """`docker.io/library/nginx:1@sha256:…` -> `nginx:1`. What has a digest and no tag stays as it is."""
    name, _, digest = image.partition("@")
    if digest and ":" not in name.rpartition("/")[2]:
        return image
    for prefix in ("docker.io/library/", "docker.io/", "index.docker.io/library/"):
        if name.startswith(prefix):
            name = name[len(prefix) :]
            break
    return name


def own_node(shell: Shell) -> str:
    """The id of the node that is asked. Raises Failed when it is in no swarm."""
    from skep.cli.shell import Failed

    info = shell.call(calls.info())
    swarm = info.get("Swarm") or {}
    if not swarm.get("NodeID"):
        # the daemon says why: inactive, pending, locked
        shell.call(calls.node_list())
        raise Failed("node is not a part of a swarm")
    return str(swarm["NodeID"])


def node_reference(shell: Shell, node: str) -> str:
    return own_node(shell) if node == "self" else node


class Resolver:
    """Ids to names, each asked for once. With `plain` ids stay ids."""

    def __init__(self, shell: Shell, plain: bool = False) -> None:
        self.shell = shell
        self.plain = plain
        self._known: dict[tuple[str, str], str] = {}

    def service(self, id: str) -> str:
        return self._name("service", id, lambda: self.shell.call(calls.service_inspect(id))["Spec"]["Name"])

    def node(self, id: str) -> str:
        return self._name("node", id, lambda: node_name(self.shell.call(calls.node_inspect(id))))

    def _name(self, kind: str, id: str, ask: Any) -> str:
        if self.plain or not id:
            return id
        if (kind, id) not in self._known:
            try:
                self._known[kind, id] = str(ask()) or id
            except (SkepError, KeyError):
                self._known[kind, id] = id
        return self._known[kind, id]


def node_name(node: dict[str, Any]) -> str:
    return str(node["Spec"].get("Name") or (node.get("Description") or {}).get("Hostname") or node["ID"])
