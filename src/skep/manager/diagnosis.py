"""What is wrong with the cluster's network, from what each node found: one sentence a thing, with why and what to do. Pure.

A node can say that nobody answered; which of two nodes is to blame, and whether the wire between them or only what runs over it is cut,
shows when all reports are seen together. So one cut is one sentence, not one for each pair of tasks behind it. See docs/network.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from skep.model.assignment import EndpointItem, Item, TaskItem
from skep.model.check import OVERLAY, TASK, UNDERLAY, VIP, WIDE, NodeReport, Reached, fingerprint
from skep.model.cluster import Cluster as ClusterObject
from skep.model.network import Network
from skep.model.node import Node
from skep.model.service import Service
from skep.model.task import Task
from skep.plan.assignment import items, serving
from skep.plan.view import View

_ADDRESS = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])")
LISTED = 3
"""What is named one by one before the rest is counted."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    """Hostname of the node that found it."""
    kind: str
    """kernel, names, told, underlay, overlay, mtu, task, service, node."""
    network: str = ""
    text: str = ""
    advice: str = ""
    mended: bool = False


class Cluster:
    """The store as it is now, in the words of a sentence."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.nodes = {node.id: node for node in view.all(Node)}
        self.networks = {network.id: network for network in view.all(Network)}
        stored = next(iter(view.all(ClusterObject)), None)
        self.port = (stored.data_path_port if stored is not None else 0) or 4789
        self._owners: dict[tuple[str, str], Task] = {}
        for task in view.all(Task):
            for place in task.attachments:
                for address in place.addresses:
                    plain = address.partition("/")[0]
                    before = self._owners.get((place.network_id, plain))
                    if before is None or serving(task):
                        self._owners[place.network_id, plain] = task
        self._by_address: dict[str, Task] = {address: task for (_, address), task in self._owners.items()}

    def host(self, node_id: str) -> str:
        node = self.nodes.get(node_id)
        return (node.hostname or node.id) if node is not None else node_id

    def network(self, id: str) -> str:
        network = self.networks.get(id)
        return network.spec.name if network is not None else id

    def owner(self, address: str, network_id: str = "") -> str:
        """`web.3 on worker01`; empty where nobody has it."""
        task = self._owners.get((network_id, address)) if network_id else self._by_address.get(address)
        if task is None:
            return next((f"node {n.hostname}" for n in self.nodes.values() if n.status.addr == address), "")
        return f"{title(task)} on {self.host(task.node_id)}"

    def with_owners(self, sentence: str) -> str:
        """Addresses are what a kernel speaks of; people speak of tasks."""

        def named(found: re.Match[str]) -> str:
            owner = self.owner(found[0])
            return f"{found[0]} ({owner})" if owner else found[0]

        return _ADDRESS.sub(named, sentence, count=1)

    def serves(self, subject: str) -> bool:
        """Whether the endpoint of this key still serves."""
        task = self.view.get(Task, subject.split("/")[1]) if subject.startswith("endpoint/") else None
        return task is not None and serving(task)


def title(task: Task) -> str:
    if not task.service_id:
        plain = task.spec.network_attachment_spec
        return f"container {plain.container_id[:12]}" if plain else task.id
    return f"{task.service_name}.{task.slot}" if task.slot else task.name


def diagnose(view: View, reports: Mapping[str, NodeReport], *, wanted: Iterable[str] = ()) -> list[Problem]:
    """`reports` by node id; `wanted`: ids of the networks asked about (none: all)."""
    cluster, chosen = Cluster(view), frozenset(wanted)
    out: list[Problem] = []
    for id, report in sorted(reports.items(), key=lambda it: cluster.host(it[0])):
        out += _alone(cluster, id, report, chosen)
    return out + _joined(_between(cluster, reports))


def _alone(cluster: Cluster, id: str, report: NodeReport, chosen: frozenset[str]) -> list[Problem]:
    host = cluster.host(id)
    if report.error:
        return [Problem(node=host, kind="node", text=f"{host} could not look at its network: {report.error}", advice="see its log")]
    out = [
        Problem(
            node=host,
            kind="kernel",
            text=cluster.with_owners(text),
            mended=report.repaired,
            advice="" if report.repaired else "another program changed it; it is mended within a minute, or now with --repair",
        )
        for text in report.kernel
    ]
    out += [Problem(node=host, kind="kernel", text=text) for text in report.refused]
    out += [
        Problem(
            node=host,
            kind="names",
            text=cluster.with_owners(text),
            mended=report.repaired,
            advice="" if report.repaired else "--repair tells its resolver everything again",
        )
        for text in report.names
    ]
    return out + [p for p in differences(cluster, id, report) if not chosen or p.network in {cluster.network(n) for n in chosen}]


def differences(cluster: Cluster, id: str, report: NodeReport) -> list[Problem]:
    """Where the snapshot in force on a node is not what the store says."""
    ought = {key: item for key, item in items(cluster.view, id).items() if not isinstance(item, TaskItem)}
    host = cluster.host(id)
    missing = [key for key in ought if key not in report.items]
    strange = [key for key in report.items if key not in ought]
    stale = [key for key, item in ought.items() if key in report.items and report.items[key] != fingerprint(item)]
    out = []
    for what, keys in (("does not know", missing), ("still knows", strange), ("has not heard what changed of", stale)):
        for key in sorted(keys)[:LISTED]:
            item = ought.get(key)
            out.append(_told(cluster, host, f"{host} {what} {_words(cluster, key, item)}", report, _network_of(key, item)))
        if len(keys) > LISTED:
            out.append(_told(cluster, host, f"{host} {what} {len(keys) - LISTED} things more", report, ""))
    return out


def _told(cluster: Cluster, host: str, text: str, report: NodeReport, network_id: str) -> Problem:
    advice = f"it stands at version {report.version}, the store at {cluster.view.version}: its session with the manager may be stuck"
    return Problem(node=host, kind="told", text=text, advice=advice, network=cluster.network(network_id) if network_id else "")


def _network_of(key: str, item: Item | None) -> str:
    kind, _, rest = key.partition("/")
    return rest.partition("/")[2] if kind in ("endpoint", "discovery") else rest if kind == "network" else ""


def _words(cluster: Cluster, key: str, item: Item | None) -> str:
    kind, id, network = (*key.split("/"), "")[:3]
    on = f" on network {cluster.network(network)}" if network else ""
    if kind == "endpoint":
        task = cluster.view.get(Task, id)
        address = f" ({item.address})" if isinstance(item, EndpointItem) else ""
        return f"the task {title(task) if task else id}{address}{on}"
    if kind in ("service", "discovery"):
        service = cluster.view.get(Service, id)
        return f"the service {service.name if service else id}{on}"
    return f"the {'node' if kind == 'peer' else kind} {cluster.host(id) if kind == 'peer' else cluster.network(id)}"


# between nodes


class _Cut(Problem, frozen=True, kw_only=True):
    """Nothing gets from `node` to `other`."""

    other: str


def _joined(problems: list[Problem]) -> list[Problem]:
    """What is cut both ways is one thing."""
    cuts = {(p.kind, p.node, p.other) for p in problems if isinstance(p, _Cut)}
    out: list[Problem] = []
    for p in problems:
        if isinstance(p, _Cut):
            both = (p.kind, p.other, p.node) in cuts
            if both and p.other < p.node:
                continue
            way = f"between {p.node} and {p.other}" if both else f"from {p.node} to {p.other}"
            p = Problem(node=p.node, kind=p.kind, text=p.text.replace("{way}", way), advice=p.advice)
        out.append(p)
    return out


def _between(cluster: Cluster, reports: Mapping[str, NodeReport]) -> list[Problem]:
    out: list[Problem] = []
    for id, report in sorted(reports.items(), key=lambda it: cluster.host(it[0])):
        by_node: dict[str, list[Reached]] = {}
        for one in report.reached:
            by_node.setdefault(one.node_id, []).append(one)
        for other, found in sorted(by_node.items(), key=lambda it: cluster.host(it[0])):
            if other == id or not other:
                unheard = {_service_of(cluster, one) for one in report.reached if one.what == TASK and not one.ok}
                out += _failed(cluster, id, [one for one in found if one.what != VIP or _service_of(cluster, one) not in unheard])
            else:
                out += _pair(cluster, id, other, found)
    return out


def _service_of(cluster: Cluster, one: Reached) -> str:
    """A virtual address leads to its tasks: one of these that does not answer is why it does not."""
    id = one.subject.split("/")[1]
    if one.what == VIP:
        return id
    task = cluster.view.get(Task, id)
    return task.service_id if task is not None else ""


def _pair(cluster: Cluster, here: str, there: str, found: list[Reached]) -> list[Problem]:
    a, b = cluster.host(here), cluster.host(there)
    underlay = [one for one in found if one.what == UNDERLAY]
    over = [one for one in found if one.what in (OVERLAY, TASK)]
    node = cluster.nodes.get(there)
    address = underlay[0].address if underlay else node.status.addr if node else ""
    if not any(one.ok for one in over):
        if underlay and not underlay[0].ok:
            advice = "a route, a link or a firewall between the two machines"
            return [
                _Cut(node=a, other=b, kind="underlay", text=f"no answer {{way}} ({address}), neither to ping nor to TCP", advice=advice)
            ]
        if over:
            text = f"no answer over VXLAN {{way}} ({address}) although the underlay answers"
            return [_Cut(node=a, other=b, kind="overlay", text=text, advice=f"is UDP port {cluster.port} blocked?")]
        return []
    out = []
    wide = [one for one in found if one.what == WIDE and not one.ok]
    small = {(one.source, one.address) for one in over if one.ok}
    cut = [one for one in wide if (one.source, one.address) in small]
    if cut:
        text = f"packets of {cut[0].size} bytes do not get from {a} to {b}, though small ones do"
        advice = "a link between the machines carries less than their own interfaces say: lower the MTU of the interface, or of the network"
        out.append(Problem(node=a, kind="mtu", text=text, advice=f"{advice} (--opt com.docker.network.driver.mtu)"))
    return out + _failed(cluster, here, [one for one in found if one.what != UNDERLAY])


def _failed(cluster: Cluster, here: str, found: list[Reached]) -> list[Problem]:
    """What did not answer though its node does, one sentence for each."""
    a, out = cluster.host(here), []
    seen: set[tuple[str, str, str]] = set()
    for one in found:
        if one.ok or one.what in (WIDE, UNDERLAY) or (one.what, one.network_id, one.address) in seen:
            continue
        if one.what == TASK and not cluster.serves(one.subject):
            continue
        seen.add((one.what, one.network_id, one.address))
        network = cluster.network(one.network_id)
        if one.what == VIP:
            service = cluster.view.get(Service, one.subject.split("/")[1])
            if service is None:
                continue
            text = f"{one.address}, the address of service {service.name} on {network}, does not answer on {a}"
            advice = "see what is said of its tasks and of this node's kernel"
            out.append(Problem(node=a, kind="service", network=network, text=text, advice=advice))
        elif one.what == OVERLAY:
            out.append(
                Problem(node=a, kind="overlay", network=network, text=f"no ping from {a} to {cluster.host(one.node_id)} on {network}")
            )
        else:
            out.append(_task(cluster, a, network, one))
    return out


def _task(cluster: Cluster, a: str, network: str, one: Reached) -> Problem:
    owner = cluster.owner(one.address, one.network_id) or one.subject
    from_ = f"from {cluster.owner(one.source, one.network_id) or a}"
    if one.tcp:
        text = f"{one.address} ({owner}) on {network} refuses TCP and answers no ping {from_}"
        advice = "it may ignore pings by itself (sysctl icmp_echo_ignore_all); if not, its address is taken for a dead one"
    elif one.ping:
        text = f"{one.address} ({owner}) on {network} answers pings, and no TCP {from_}"
        advice = "does a rule inside the container, or in the chain `user`, drop it?"
    else:
        text = f"{one.address} ({owner}) on {network} does not answer {from_}"
        advice = "see what is said of the two nodes' kernels"
    return Problem(node=a, kind="task", network=network, text=text, advice=advice)


# the table


def matrix(cluster: Cluster, network_id: str, reports: Mapping[str, NodeReport]) -> dict[str, dict[str, tuple[int, int]]]:
    """Hostname -> hostname -> (answered, tried), of all that was tried on this network; to itself: tasks of one node, and services."""
    out: dict[str, dict[str, tuple[int, int]]] = {}
    for id, report in reports.items():
        row: dict[str, tuple[int, int]] = {}
        for one in report.reached:
            if one.network_id == network_id:
                to = cluster.host(one.node_id or id)
                good, tried = row.get(to, (0, 0))
                row[to] = (good + one.ok, tried + 1)
        if row:
            out[cluster.host(id)] = row
    return out
