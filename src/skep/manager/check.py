"""`skep network check`: every ready node is asked, over the link, whether its network is well; what they find is judged together.

Bounded: a node has ten seconds. What is wrong while the cluster changes, or while a node has not heard of what has just changed, is asked
about once more: only what is wrong twice is said, for a task that has just gone is no fault. See docs/network.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from skep.ids import Random, new_id
from skep.link.messages import Checked, CheckWanted
from skep.manager.diagnosis import Cluster, Problem, diagnose, matrix
from skep.model.check import NodeReport
from skep.model.enums import NodeState
from skep.model.network import Network
from skep.model.node import Node
from skep.store.base import Store

PATIENCE = 10.0
"""Seconds for a node's answer."""
PAUSE = 1.0
"""Seconds between a look that found something while the cluster changed and the one that counts."""
ROUNDS = 3
Event = Mapping[str, Any]


class Checks:
    def __init__(
        self, store: Store, send: Callable[[str, CheckWanted], bool], rng: Random, *, patience: float = PATIENCE, pause: float = PAUSE
    ) -> None:
        """`send`: `Sessions.ask`."""
        self._patience, self._pause = patience, pause
        self._store = store
        self._send = send
        self._rng = rng
        self._waiting: dict[str, tuple[str, asyncio.Future[NodeReport]]] = {}
        """Question -> (node, its answer)."""

    def answered(self, node_id: str, message: Checked) -> None:
        asked, waiting = self._waiting.get(message.question, ("", None))
        if asked == node_id and waiting is not None and not waiting.done():
            waiting.set_result(message.report)

    async def run(self, networks: Sequence[str], repair: bool) -> AsyncGenerator[Event, None]:
        """What is found: `Node` for each node, `Network` for each network, `Problem` for each thing that is wrong, `Done` at the end."""
        kept: list[Problem] = []
        for round in range(ROUNDS):
            version = self._store.version
            silent, reports = await self._ask(networks, repair)
            problems = _unheard(silent) + diagnose(self._store, reports, wanted=networks)
            kept += [p for p in problems if p.mended and p not in kept]
            if all(p.mended for p in problems) or (round and version == self._store.version):
                break
            if round < ROUNDS - 1:
                behind = any(p.kind == "told" for p in problems)
                if version == self._store.version and not behind and not repair:
                    break
                await asyncio.sleep(self._pause)
        for event in self._events(networks, reports, silent, [p for p in problems if not p.mended] + kept):
            yield event

    async def _ask(self, networks: Sequence[str], repair: bool) -> tuple[dict[str, str], dict[str, NodeReport]]:
        """Hostname -> why there is no answer; node id -> its report."""
        silent: dict[str, str] = {}
        waiting: dict[str, asyncio.Future[NodeReport]] = {}
        questions: list[str] = []
        names: dict[str, str] = {}
        for node in sorted(self._store.all(Node), key=lambda n: n.hostname):
            names[node.id] = node.hostname or node.id
            if node.status.left:
                continue
            if node.status.state is not NodeState.READY:
                silent[names[node.id]] = f"is {node.status.state.value}, so it was not asked"
                continue
            question = new_id(self._rng)
            answer: asyncio.Future[NodeReport] = asyncio.get_running_loop().create_future()
            self._waiting[question] = (node.id, answer)
            questions.append(question)
            if self._send(node.id, CheckWanted(question=question, networks=tuple(networks), repair=repair)):
                waiting[node.id] = answer
            else:
                silent[names[node.id]] = "has no session with this manager, or an older skepd"
        try:
            if waiting:
                await asyncio.wait(waiting.values(), timeout=self._patience)
        finally:
            for question in questions:
                del self._waiting[question]
        reports = {}
        for id, answer in waiting.items():
            if answer.done():
                reports[id] = answer.result()
            else:
                silent[names[id]] = f"did not answer within {self._patience:.0f} s"
        return silent, reports

    def _events(
        self, networks: Sequence[str], reports: Mapping[str, NodeReport], silent: Mapping[str, str], problems: list[Problem]
    ) -> list[Event]:
        cluster = Cluster(self._store)
        out: list[Event] = []
        for id, report in sorted(reports.items(), key=lambda it: cluster.host(it[0])):
            shown = {
                "ID": id,
                "Hostname": cluster.host(id),
                "Version": report.version,
                "Tried": len(report.reached),
                "Answered": sum(one.ok for one in report.reached),
                "Skipped": report.skipped,
                "Milliseconds": report.milliseconds,
            }
            out.append({"Node": shown})
        for network in sorted(self._store.all(Network), key=lambda n: n.spec.name):
            if networks and network.id not in networks:
                continue
            out.append({"Network": {"ID": network.id, "Name": network.spec.name, "Reached": matrix(cluster, network.id, reports)}})
        out += [{"Problem": msgspec.to_builtins(problem)} for problem in problems]
        wrong = sum(not problem.mended for problem in problems)
        done = {"Version": self._store.version, "Problems": wrong, "Mended": len(problems) - wrong, "Silent": dict(silent)}
        return [*out, {"Done": done}]


def _unheard(silent: Mapping[str, str]) -> list[Problem]:
    return [
        Problem(node=name, kind="node", text=f"{name} {why}", advice="is its skepd running, and reaches it this manager?")
        for name, why in silent.items()
    ]
