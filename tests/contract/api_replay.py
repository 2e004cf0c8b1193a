"""Runs recorded exchanges, in their order, against one running server, and lets the world go on until an answer is the recorded one."""

from __future__ import annotations

import base64
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from api_compare import Bindings, Different, same
from api_world import World

from skep.testing.api_client import Answer, Client

DATA = pathlib.Path(__file__).parents[1] / "data" / "recorded"
PATIENCE = 400
"""Steps of the world (a quarter of a second each) that an answer is waited for: as long as the recording client waited, and some."""

NOT_BUILT = ("Secrets", "Configs")
"""Parts of a service spec that skep refuses so far: taken out of requests and answers alike."""


def load(name: str) -> list[dict[str, Any]]:
    with open(DATA / name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def amended(value: Any, *, networks: tuple[str, ...] = ()) -> Any:
    """Without what skep does not have yet. `networks`: recorded ids of cluster networks, whose attachments and VIPs go too."""
    if isinstance(value, dict):
        out = {}
        for key, item in value.items():
            if key in NOT_BUILT and isinstance(item, list):
                continue
            if key == "VirtualIPs":
                item = [vip for vip in item if vip["NetworkID"] not in networks]
            if key == "NetworksAttachments":
                item = [_ingress_as_is(a) for a in item if a["Network"]["ID"] not in networks]
                if not item:
                    continue
            out[key] = amended(item, networks=networks)
        return out
    if isinstance(value, list):
        return [amended(item, networks=networks) for item in value if not _job(item)]
    return value


def _ingress_as_is(attachment: Any) -> Any:
    """Ingress is asked for by the engine itself: with which words (`DriverConfiguration`, `IPAMOptions` of its Spec) says nothing."""
    network = attachment["Network"]
    spec = {name: value for name, value in network["Spec"].items() if name not in ("DriverConfiguration", "IPAMOptions")}
    return {**attachment, "Network": {**network, "Spec": spec}}


def _job(item: Any) -> bool:
    return isinstance(item, dict) and "JobStatus" in item


class Replay:
    def __init__(
        self, client: Client, world: World, *, hidden: tuple[str, ...] = (), ignored: Callable[[Any, str], Any] | None = None
    ) -> None:
        self.client = client
        self.world = world
        self.bound = Bindings()
        self.versions: dict[tuple[str, int], int] = {}
        self.hidden = hidden
        self.ignored = ignored or (lambda body, path: body)
        self.failures: list[str] = []
        self.compared = 0

    async def run(self, entry: dict[str, Any]) -> None:
        """Ask what was asked; a read is asked again while the world goes on. What differs in the end is noted, the run goes on."""
        request = entry["req"]
        for patience in range(PATIENCE if request["method"] in ("GET", "HEAD") else 1):
            if patience:
                self.world.step()
            answer = await self.ask(request)
            bound = self.bound.copy()
            try:
                self.compare(entry, answer, bound)
            except Different as error:
                problem = str(error)
                if entry["resp"]["status"] != answer.status and entry["resp"]["status"] >= 400:
                    break
                continue
            self.bound = bound
            self.learn(entry["resp"].get("body"), answer.body)
            self.compared += 1
            return
        self.learn(entry["resp"].get("body"), answer.body)
        self.failures.append(f"#{entry['n']} {entry['cmd'][:60]}: {request['method']} {request['path'][:90]}: {problem}")

    async def ask(self, request: dict[str, Any]) -> Answer:
        body = request.get("body")
        if isinstance(body, dict):
            body = self.translated(amended(body))
        headers = {k: v for k, v in request.get("headers", {}).items() if k not in ("Content-Type", "Expect")}
        if "Content-Type" in request.get("headers", {}):
            headers["Content-Type"] = request["headers"]["Content-Type"]
        return await self.client.ask(request["method"], self.path(request["path"]), body, headers)

    def path(self, recorded: str) -> str:
        """With our ids, and our version of the object where the recorded one is known."""
        parts = urlsplit(recorded)
        path = self.bound.translate(parts.path)
        query = []
        for key, value in parse_qsl(parts.query, keep_blank_values=True):
            if key == "version" and re.fullmatch(r"\d+", value):
                value = str(self.versions.get((_kind(parts.path), int(value)), value))
            query.append((key, self.bound.translate(value)))
        return path + ("?" + urlencode(query, quote_via=quote) if query else "")

    def translated(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.translated(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.translated(item) for item in value]
        return self.bound.translate(value) if isinstance(value, str) else value

    def compare(self, entry: dict[str, Any], answer: Answer, bound: Bindings) -> None:
        expected = entry["resp"]
        if expected["status"] != answer.status:
            raise Different(f"status {expected['status']}, ours {answer.status}: {answer.raw[:200]!r}")
        path = entry["req"]["path"]
        for name in ("Content-Type", "Api-Version", "Docker-Experimental", "Ostype", "Swarm", "Cache-Control", "Pragma"):
            if (want := expected.get("headers", {}).get(name)) is not None and answer.headers.get(name) != want:
                raise Different(f"header {name}: recorded {want}, ours {answer.headers.get(name)}")
        recorded = expected.get("body")
        if isinstance(recorded, dict) and "b64" in recorded:
            recorded = base64.b64decode(recorded["b64"]).decode("latin-1")
        recorded = self.ignored(amended(recorded, networks=self.hidden), path)
        same(recorded, self.ignored(amended(answer.body), path), bound)

    def learn(self, recorded: Any, ours: Any) -> None:
        """Which of our versions a recorded one stands for, per kind of object."""
        if isinstance(recorded, list) and isinstance(ours, list):
            by_id = {item.get("ID"): item for item in ours if isinstance(item, dict)}
            for item in recorded:
                if isinstance(item, dict):
                    self.learn(item, by_id.get(self.bound.ours.get(item.get("ID"))))
        elif isinstance(recorded, dict) and isinstance(ours, dict) and isinstance(recorded.get("Version"), dict) and "Version" in ours:
            kind = "swarm" if "JoinTokens" in recorded else "nodes" if "Description" in recorded else "services"
            self.versions[kind, recorded["Version"]["Index"]] = ours["Version"]["Index"]


def _kind(path: str) -> str:
    return next((kind for kind in ("swarm", "nodes", "services") if f"/{kind}/" in path), "")
