"""Requests to every call of the Docker Engine API, from well-shaped to nonsense, and what an answer must be like. Same seed, same requests.

Pure: who sends them is test_fuzz.py (against a context in memory) and test_fuzz_node.py (against a real skepd).
"""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from fuzz_data import API, DOCKERS_OWN_500, FILTERS, KINDS, NO_JSON, NUMBERS, ODD, UNREACHED, VALUES, WORDS


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None

    def __str__(self) -> str:
        body = b"" if self.body is None else self.body
        return f"{self.method} {self.target[:300]} {self.headers} {body[:2000]!r}{'...' if len(body) > 2000 else ''}"


class Fuzzer:
    """`known`: names and ids that exist, or did, by the first word of the path that asks about them. `fixed` gives a query parameter or a
    body's member another range than its type's. `bases`: bodies that are taken, by path; what is made of them gets further than
    what is made of the schema alone.
    """

    def __init__(
        self,
        seed: int,
        known: dict[str, list[str]],
        fixed: dict[str, tuple[Any, ...]] | None = None,
        bases: dict[str, Any] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.known = known
        self.all_known = sorted(set().union(*known.values()))
        self.fixed = fixed or {}
        self.bases = bases or {}
        self.calls = list(API["calls"])

    def next(self, calls: list[dict[str, Any]] | None = None) -> Request:
        rng = self.rng
        call = rng.choice(calls or self.calls)
        path, query, headers = self._version() + call["path"], [], {}
        for parameter in call["parameters"]:
            name, place = parameter["name"], parameter["in"]
            if place == "path":
                path = path.replace("{" + name + "}", quote(self._name(call["path"]), safe=rng.choice(("", "/:@"))) or "x")
            elif place == "query" and (parameter.get("required") or rng.random() < 0.4):
                query += [f"{name}={quote(value, safe='')}" for value in self._query(name, parameter)]
            elif place == "header" and name.lower() != "content-type" and rng.random() < 0.4:
                headers[name] = re.sub(r"[^\x20-\x7e]", "?", rng.choice(("", "FOOBAR", "e30=", "W10=", "{}", "A" * 9000, self.text())))
        if rng.random() < 0.05:
            query.append(quote(self.text(0), safe="=&%"))
        body = self._body(call) if call["method"] in ("POST", "PUT") or rng.random() < 0.03 else None
        if body is not None:
            kind = KINDS[0] if rng.random() < 0.85 else rng.choice(KINDS)
            headers["Content-Type"] = kind.encode().decode("latin-1")
        return Request(call["method"], path + ("?" + "&".join(query) if query else ""), headers, body)

    def _version(self) -> str:
        if self.rng.random() < 0.93:
            return "/v1.50"
        return self.rng.choice(
            ("", "/v1.24", "/v1.41", "/v1.99", "/v0", "/v1", "/v1.50.1", "/v" + "9" * 30, "/v1." + "9" * 30, "/vx", "//v1.50")
        )

    def text(self, known: float = 0.3) -> str:
        rng = self.rng
        if self.all_known and rng.random() < known:
            return rng.choice(self.all_known)
        return rng.choice(WORDS) if rng.random() < 0.5 else rng.choice(ODD[:-1])

    def _name(self, path: str) -> str:
        kind = path.split("/")[1]
        if kind in self.known and self.rng.random() < 0.8:
            return self.rng.choice(self.known[kind])
        return self.text(0.5)

    def _query(self, name: str, parameter: dict[str, Any]) -> list[str]:
        rng = self.rng
        if name in self.fixed:
            return [str(rng.choice(self.fixed[name]))]
        if name == "filters":
            return [self._filters()]
        if rng.random() < 0.2:
            return [self.text()] * rng.choice((1, 1, 2))
        value = self.valid(parameter)
        if isinstance(value, list):
            return [str(part) for part in value] or [""]
        return [json.dumps(value) if not isinstance(value, str) else value]

    def _filters(self) -> str:
        rng = self.rng
        if rng.random() < 0.25:
            return rng.choice(
                ("{", "[]", "null", "1", '"x"', '{"a":1}', '{"a":[1]}', '{"a":null}', '{"label":{"a":"b"}}', "[" * 3000, "{}", " ", "\x00")
            )
        chosen: dict[str, Any] = {}
        for _ in range(rng.randint(1, 3)):
            values = [rng.choice(VALUES) if rng.random() < 0.5 else self.text() for _ in range(rng.randint(1, 2))]
            chosen[rng.choice(FILTERS)] = values if rng.random() < 0.8 else dict.fromkeys(values, rng.choice((True, False)))
        return json.dumps(chosen)

    def _body(self, call: dict[str, Any]) -> bytes | None:
        rng = self.rng
        if "body" not in call or call["body"].get("type") == "string":
            return rng.choice((None, b"", b"{}", b"x" * 100, small_tar()))
        if rng.random() < 0.12:
            return rng.choice(NO_JSON)
        if call["path"] in self.bases and rng.random() < 0.7:
            value = self.bases[call["path"]]
            for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
                value = self._graft(value, call["body"])
        else:
            value = self.valid(call["body"])
        spoilt = rng.random()
        for _ in range(0 if spoilt < 0.4 else 1 if spoilt < 0.7 else rng.randint(2, 6)):
            value = self._spoil(value)
        return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")

    def valid(self, schema: dict[str, Any], depth: int = 0, name: str = "") -> Any:
        """Something of the schema's shape."""
        rng = self.rng
        if name in self.fixed:
            return rng.choice(self.fixed[name])
        if "$ref" in schema:
            return self.valid(API["shapes"][schema["$ref"]], depth, name)
        if "allOf" in schema:
            merged: dict[str, Any] = {}
            for part in schema["allOf"]:
                if isinstance(value := self.valid(part, depth, name), dict):
                    merged |= value
            return merged
        if "enum" in schema and rng.random() < 0.9:
            return rng.choice(schema["enum"])
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            count = rng.choice((0, 1, 1, 2, 3)) if depth < 8 else 0
            return [self.valid(schema.get("items", {}), depth + 1, name + "[]") for _ in range(count)]
        if kind == "boolean":
            return rng.random() < 0.5
        if kind in ("integer", "number"):
            return rng.choice(NUMBERS[:9]) if rng.random() < 0.7 else rng.choice(NUMBERS)
        return self.text()

    def _graft(self, value: Any, schema: dict[str, Any]) -> Any:
        """One member of it, at any depth, set to something of the schema's shape."""
        while "$ref" in schema:
            schema = API["shapes"][schema["$ref"]]
        parts = {name: part for one in schema.get("allOf", [schema]) for name, part in self._members(one).items()}
        if not parts or not isinstance(value, dict):
            return self.valid(schema, 2)
        name = self.rng.choice(sorted(parts))
        if name in value and self.rng.random() < 0.8:
            return {**value, name: self._graft(value[name], parts[name])}
        return {**value, name: self.valid(parts[name], 3, name)}

    def _members(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = API["shapes"][schema["$ref"]]
        if "allOf" in schema:
            return {name: part for one in schema["allOf"] for name, part in self._members(one).items()}
        found: dict[str, Any] = schema.get("properties", {})
        return found

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        rng = self.rng
        out: dict[str, Any] = {}
        share = 0.5 if depth < 2 else 0.25 if depth < 5 else 0.1
        for name, part in schema.get("properties", {}).items():
            if name in schema.get("required", ()) or rng.random() < share:
                out[name] = self.valid(part, depth + 1, name)
        more = schema.get("additionalProperties")
        if isinstance(more, dict):
            out |= {self.text(): self.valid(more, depth + 1) for _ in range(rng.choice((0, 1, 2)))}
        return out

    def _spoil(self, value: Any) -> Any:
        """One place of it replaced by something else."""
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            if rng.random() < 0.1:
                return {k: v for k, v in value.items() if k != key}
            return {**value, key: self._spoil(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.8:
            at = rng.randrange(len(value))
            return [*value[:at], self._spoil(value[at]), *value[at + 1 :]]
        return self._odd()

    def _odd(self) -> Any:
        rng = self.rng
        choice = rng.randrange(9)
        if choice == 0:
            return None
        if choice == 1:
            return rng.choice(NUMBERS)
        if choice == 2:
            return rng.choice((1.5, -0.0, 1e300, True, False))
        if choice == 3:
            return rng.choice(([], [[]], [None], {}, {"": None}, [{}], [1, "a"]))
        if choice == 4:
            return nested(rng.choice((5, 100, 900)), rng.random() < 0.5)
        if choice == 5:
            return [self.text() for _ in range(2000)] if rng.random() < 0.1 else [self.text()]
        if choice == 6:
            return {self.text(): self.text()}
        return rng.choice(ODD)


def nested(depth: int, lists: bool) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


def small_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("tmp/fuzzed")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    return out.getvalue()


def complaint(request: Request, status: int, kind: str, body: bytes) -> str:
    """What is wrong with an answer; empty: nothing."""
    if not 200 <= status < 600 and status != 101:
        return f"status {status}"
    if b"internal error" in body[:10_000] or b"Traceback" in body[:10_000]:
        return "an internal error"
    if status < 400 or request.method == "HEAD":
        return ""
    if b"is too old. Minimum supported API version is" in body and status == 400:
        return ""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return f"no JSON: {body[:200]!r} ({kind})"
    if not isinstance(said, dict) or set(said) != {"message"} or not isinstance(said["message"], str) or not said["message"]:
        return f"not {{message}}: {body[:200]!r}"
    if len(said["message"]) > 20_000:
        return f"a message of {len(said['message'])} characters"
    path = urlsplit(request.target).path
    asks_a_registry = path.endswith(("/auth", "/images/create")) or "/distribution/" in path
    dockers = (*DOCKERS_OWN_500, UNREACHED) if asks_a_registry else DOCKERS_OWN_500
    if status == 500 and not any(known.fullmatch(said["message"]) for known in dockers):
        return f"500 {said['message'][:500]}"
    return ""
