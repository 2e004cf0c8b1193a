"""What must be true of each container after what was done to it, and what it is said to be. No I/O.

Who asked and got no answer (skepd was killed meanwhile) knows nothing: `run` and `exists` are None then, and what is found is right.
An end that nobody saw is shown as exit code 255 with an error, as Docker shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

UNSEEN = 255
RETRIES = 2
TAKEN = ("failed to set up container networking", "Address already in use", "port is already allocated")
"""Why one could not be started again: somebody else has what it had, or its network was removed meanwhile."""

PROGRAMS: Mapping[str, str] = {
    "stay": "exec sleep 1000000",
    "trap": "trap 'exit 3' TERM; while :; do sleep 0.2; done",
    "talk": "while :; do echo a line that is said again and again; sleep 0.05; done",
    "seven": "sleep 0.3; exit 7",
    "zero": "sleep 0.2; exit 0",
    "hungry": "sleep 0.3; exec tail /dev/zero",
}
ENDS: Mapping[str, int] = {"seven": 7, "zero": 0, "hungry": 137}


@dataclass
class Box:
    name: str
    program: str
    named: bool = True
    """False: it may still have another name."""
    policy: str = ""
    removes: bool = False
    tty: bool = False
    volumes: tuple[str, ...] = ()
    networks: set[str] | None = None
    """None: not known."""
    id: str = ""
    exists: bool | None = None
    run: bool | None = None
    paused: bool | None = False
    codes: set[int] = field(default_factory=set)
    """Of its last end."""
    by_hand: bool | None = False
    """Stopped by the user."""
    lost: bool | None = False
    """Its conmon was killed: nobody sees its end. None: not known, it may have been started anew since."""
    pid: int = 0
    """As long as nobody has touched it."""
    restarts: int = 0
    memory: int | None = 0

    @property
    def loops(self) -> bool:
        return self.program in ENDS and self.policy in ("always", "unless-stopped")

    def unsure(self) -> None:
        self.run = self.paused = self.by_hand = self.memory = self.networks = None
        self.pid = 0
        self.lost = self.lost and None
        if self.removes:  # a start that fails removes it too
            self.exists = None

    def started(self) -> None:
        """By the user."""
        self.by_hand, self.lost, self.paused, self.restarts = False, False, False, 0
        self._begin()

    def _begin(self) -> None:
        self.pid, self.lost, self.paused = 0, False, False
        if self.program not in ENDS:
            self.run, self.codes = True, set()
            return
        code = ENDS[self.program]
        self.run = None if self.loops else False
        self.codes = {code}
        if self.policy == "on-failure" and code:
            self.restarts = RETRIES
        if self.removes:
            self.exists = False

    def ended(self, *codes: int, by_hand: bool = False) -> None:
        """It ran, and something has ended it."""
        if self.run is False:
            return
        self.pid, self.paused = 0, False
        sure = self.run
        self.codes = {UNSEEN} if self.lost else set(codes) | ({UNSEEN} if self.lost is None else set())
        self.lost = False
        if by_hand:
            self.by_hand = True
        if self.removes:
            self.exists = False
        if sure is None or (self.by_hand is None and self.policy):
            self.run = None
        elif not self.by_hand and (
            self.policy in ("always", "unless-stopped") or (self.policy == "on-failure" and self.restarts < RETRIES)
        ):
            self.restarts += 1
            self._begin()
        else:
            self.run = False

    def daemon_started(self) -> None:
        """`always` is meant so: also what was stopped by hand. What could not be started for want of a network or an address is tried
        again."""
        if self.run is not False:
            return
        if self.policy == "always" and self.by_hand is not False:
            self.run = None if self.program in ENDS or self.by_hand is None else True
            self.by_hand, self.codes = False, set()
        elif self.policy and not self.by_hand and self.codes != {0} and (self.policy != "on-failure" or self.restarts < RETRIES):
            self.run, self.codes = None, set()


def wrong(boxes: Iterable[Box], found: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that is other than it must be. `found`: id -> inspect."""
    said = []
    names = {one["Name"].removeprefix("/"): id for id, one in found.items()}
    owned = set()
    for box in boxes:
        id = box.id or names.get(box.name, "")
        owned.add(id)
        if id not in found:
            if box.exists:
                said.append(f"container {box.name} {id[:12]} is gone")
            continue
        if box.exists is False:
            said.append(f"container {box.name} {id[:12]} is still there: {found[id]['State']['Status']}")
            continue
        said += [f"container {box.name} ({box.program}, {box.policy or 'no policy'}) {id[:12]}: {line}" for line in _wrong(box, found[id])]
    return said + [f"container {found[id]['Name']} {id[:12]} was never asked for" for id in found.keys() - owned]


def _wrong(box: Box, one: Mapping[str, Any]) -> list[str]:
    state, said = one["State"], []
    if box.id and box.named and one["Name"] != f"/{box.name}":
        said.append(f"is named {one['Name']}")
    running = state["Running"] and not state["Restarting"]
    yielded = box.policy and not running and any(text in state["Error"] for text in TAKEN)
    if box.run is not None and running != box.run and not yielded:
        said.append(f"{'should' if box.run else 'should not'} run: {state}")
    if box.run is False and not running:
        if state["Restarting"]:
            said.append("is about to be started again")
        elif box.codes and state["ExitCode"] not in box.codes:
            said.append(f"ended with {state['ExitCode']} ({state['Error']}), not {box.codes}")
    if state["Status"] == "exited" and state["ExitCode"] == UNSEEN and not state["Error"]:
        said.append("its exit code is not known, and nothing says so")
    starved = box.program == "hungry" and box.codes == {137} and not box.by_hand
    if starved and state["Status"] == "exited" and not state["OOMKilled"]:
        said.append("was killed for its memory, and nothing says so")
    if box.paused is not None and box.run and state["Paused"] != box.paused:
        said.append(f"{'is not' if box.paused else 'is'} paused")
    if box.pid and running and state["Pid"] != box.pid:
        said.append(f"was started anew, though nobody touched it: process {state['Pid']}, before {box.pid}")
    if box.run is False and box.policy == "on-failure" and one["RestartCount"] > RETRIES:
        said.append(f"was started again {one['RestartCount']} times")
    if box.memory is not None and one["HostConfig"]["Memory"] != box.memory:
        said.append(f"its memory is {one['HostConfig']['Memory']}, not {box.memory}")
    if box.networks is not None and set(one["NetworkSettings"]["Networks"]) != box.networks:
        said.append(f"is on networks {sorted(one['NetworkSettings']['Networks'])}, not {sorted(box.networks)}")
    return said


def adopt(boxes: list[Box], found: Mapping[str, Any]) -> list[Box]:
    """Take what is found for what is; those that are no more are left out."""
    names = {one["Name"].removeprefix("/"): id for id, one in found.items()}
    left = []
    for box in boxes:
        box.id = box.id or names.get(box.name, "")
        if box.id not in found:
            continue
        one = found[box.id]
        state = one["State"]
        box.named, box.exists, box.name = True, True, one["Name"].removeprefix("/")
        running = state["Running"] and not state["Restarting"]
        box.pid = state["Pid"] if running and box.program not in ENDS else 0
        if not box.loops:
            box.run = running if box.program not in ENDS or not state["Running"] else None
        if state["Status"] == "created":
            box.codes = set()
        elif not running:
            box.codes = {state["ExitCode"]}
        box.paused, box.restarts = state["Paused"], one["RestartCount"]
        box.memory, box.networks = one["HostConfig"]["Memory"], set(one["NetworkSettings"]["Networks"])
        left.append(box)
    return left
