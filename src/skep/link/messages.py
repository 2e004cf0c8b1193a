"""What managers and agents say to each other: msgpack frames on one WebSocket over mutual TLS (port 2377), tagged by `t`.

A session begins with Hello and Welcome. Assignments carry sequence numbers as SwarmKit's do (a gap makes the agent reconnect), and the
store's version they show. Bulk (logs, exec) has connections of its own, so that it never delays a heartbeat. See docs/link.md.
"""

from __future__ import annotations

import msgspec

from skep.model.assignment import Item
from skep.model.check import NodeReport
from skep.model.network import Network
from skep.model.node import NodeDescription
from skep.model.spec import NodeSpec
from skep.model.task import TaskStatus

PROTOCOL = 2
"""Raised when messages change; managers understand the version before theirs.

2: names and virtual addresses (`DiscoveryItem`), leaving before dying (`Applied`, `Left`), questions (`Attach`, `Find`, `Answer`;
`CheckWanted`, `Checked`).
"""


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t"):
    """Base of all frames."""


# agent -> manager


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    protocol: int = PROTOCOL
    description: NodeDescription
    statuses: dict[str, TaskStatus] = {}
    """Of all tasks the node has: reported anew with each session."""
    address: str = ""
    """The node's advertised address; empty: the one the manager sees."""


class Heartbeat(Message, frozen=True, kw_only=True, tag="beat"):
    applied_version: int = 0
    """The snapshot version this node has applied to its network and tasks."""


class Applied(Message, frozen=True, kw_only=True, tag="applied"):
    """This node's network stands at this snapshot. Said at once where assignments ask for it (`acknowledge`)."""

    version: int


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """Task statuses, the latest of each; batched by the agent, repeated until acknowledged."""

    sequence: int
    statuses: dict[str, TaskStatus]


class Described(Message, frozen=True, kw_only=True, tag="described"):
    """The node's description changed."""

    description: NodeDescription


class Attach(Message, frozen=True, kw_only=True, tag="attach"):
    """A plain container asks for a place on a network. Asked anew in each session until it is answered: the id makes it one question."""

    task_id: str
    """Of the task that is to be made for it: the node's choice."""
    network: str
    """Id or name."""
    container_id: str
    address: str = ""
    names: tuple[str, ...] = ()


class Find(Message, frozen=True, kw_only=True, tag="find"):
    """Which network is this (id, name, unique id prefix), if it is one that this node may know of?"""

    question: str
    reference: str
    joining: bool = False
    """A container is to be put on it: where that may not be, the answer is the refusal."""


class Leave(Message, frozen=True, kw_only=True, tag="leave"):
    """The node leaves the cluster: mark it down at once."""


# manager -> agent


class Welcome(Message, frozen=True, kw_only=True, tag="welcome"):
    protocol: int = PROTOCOL
    session_id: str
    node_id: str
    heartbeat_period: int
    """Nanoseconds; the manager gives another one (period +- 10 %) with each Beaten."""
    spec: NodeSpec
    managers: tuple[str, ...] = ()
    """`ip:port` of all managers."""
    data_path_port: int = 4789


class Beaten(Message, frozen=True, kw_only=True, tag="beaten"):
    """Answer to a heartbeat: when the next is due, and up to where assignments were sent before it: a node that has not got so far has
    lost the last ones, of which no later one would tell it."""

    period: int
    sequence: int = 0


class Reported(Message, frozen=True, kw_only=True, tag="reported"):
    """Everything up to this report is stored durably."""

    sequence: int


class Assignments(Message, frozen=True, kw_only=True, tag="assign"):
    complete: bool = False
    """True: the whole set, anything absent is to be removed. False: a difference to `applies_to`."""
    applies_to: int = 0
    results_in: int = 0
    version: int = 0
    """The store's index that the node knows of after applying this (`snapshot_version`)."""
    set: tuple[Item, ...] = ()
    remove: tuple[str, ...] = ()
    """Keys."""
    acknowledge: bool = False
    """Say `Applied` as soon as the network stands at this version: a task waits for it before it dies."""


class Left(Message, frozen=True, kw_only=True, tag="left"):
    """No node sends anything to these tasks any more: those that were told to stop may be stopped."""

    tasks: tuple[str, ...]


class Answer(Message, frozen=True, kw_only=True, tag="answer"):
    """To an Attach (`question` is its task's id) or a Find."""

    question: str
    network: Network | None = None
    task_id: str = ""
    """Of the place: another than was asked for where the container has its place there already."""
    address: str = ""
    """With the prefix length."""
    status: int = 0
    """Not 0: it failed, with this HTTP status."""
    error: str = ""
    rpc: str = ""


class NodeChanged(Message, frozen=True, kw_only=True, tag="node"):
    """The node's own spec, or the list of managers, changed."""

    spec: NodeSpec
    managers: tuple[str, ...] = ()


class Closing(Message, frozen=True, kw_only=True, tag="closing"):
    """The session ends; `reason` is a sentence. `removed`: the node is no longer part of the cluster and must not come back."""

    reason: str
    removed: bool = False


# logs, on a connection of their own


class LogsWanted(Message, frozen=True, kw_only=True, tag="logs"):
    """Manager -> agent on the session: open a log stream (a connection of its own to /logs/<stream>) for these tasks."""

    stream: str
    task_ids: tuple[str, ...]
    stdout: bool = True
    stderr: bool = True
    follow: bool = False
    since: int = 0
    until: int = 0
    tail: int = -1
    """Lines per task; -1 = all."""


class LogsUnwanted(Message, frozen=True, kw_only=True, tag="nologs"):
    stream: str


class LogLine(Message, frozen=True, kw_only=True, tag="line"):
    """Agent -> manager on a log connection."""

    task_id: str
    stream: int
    """1 stdout, 2 stderr."""
    at: int
    data: bytes
    """With its newline."""
    details: dict[str, str] = {}


# single questions over HTTPS on the same port, as JSON: GET /ca, POST /join, POST /renew


class JoinCall(msgspec.Struct, frozen=True, kw_only=True):
    """A node without a certificate, with a token, asks to be taken in."""

    token: str
    csr: str
    """PEM."""
    availability: str = ""


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    node_id: str
    certificate: str
    """PEM."""
    cluster_id: str = ""
    managers: tuple[str, ...] = ()
    """`ip:port` of all managers."""


class RenewCall(msgspec.Struct, frozen=True, kw_only=True):
    csr: str


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    certificate: str


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is an error."""

    message: str
    removed: bool = False


# is the network well?


class CheckWanted(Message, frozen=True, kw_only=True, tag="check"):
    """Manager -> agent: look at your network, and say what you find (`Checked`)."""

    question: str
    networks: tuple[str, ...] = ()
    """Ids; none: all that the node knows."""
    repair: bool = False


class Checked(Message, frozen=True, kw_only=True, tag="checked"):
    question: str
    report: NodeReport


FromAgent = Hello | Heartbeat | Applied | Report | Described | Attach | Find | Leave | Checked
FromManager = Welcome | Beaten | Reported | Assignments | Left | Answer | NodeChanged | Closing | LogsWanted | LogsUnwanted | CheckWanted
