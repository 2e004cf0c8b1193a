"""Calls of the Docker Engine API as data: what to ask, not how it gets there.

Bodies are what JSON makes of them. Paths carry no version: a server answers in its newest dialect.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Filters = Mapping[str, Iterable[str]]

SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")


def quote(text: str, safe: str = "") -> str:
    """Percent-encoding as Go's url.QueryEscape has it, but for blanks, which become %20 everywhere."""
    if all(c in SAFE for c in text):
        return text
    return "".join(c if c in SAFE or c in safe else "".join(f"%{byte:02X}" for byte in c.encode()) for c in text)


class Call:
    """One request. `body` is JSON unless it is bytes or an iterator of bytes; `query` values of None are left out, `lists` are keys that
    are there several times.
    """

    __slots__ = ("body", "headers", "lists", "method", "path", "query")

    def __init__(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int | bool | None] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.query = {key: _text(value) for key, value in (query or {}).items() if value is not None}
        self.body = body
        self.lists: dict[str, list[str]] = {}
        self.headers = dict(headers or {})

    @property
    def target(self) -> str:
        """Path and query as they stand in the request line."""
        pairs = [*self.query.items(), *((key, value) for key, values in self.lists.items() for value in values)]
        if not pairs:
            return self.path
        pairs.sort(key=lambda pair: pair[0])
        return self.path + "?" + "&".join(f"{quote(key)}={quote(value)}" for key, value in pairs)

    def __repr__(self) -> str:
        return f"Call({self.method} {self.target})"


def _text(value: str | int | bool) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def filters_of(filters: Filters | None) -> str | None:
    """`{"label":{"a=b":true}}`, as Go's clients send it; None when there are none."""
    import json

    chosen = {key: dict.fromkeys(sorted(values), True) for key, values in sorted((filters or {}).items())}
    return json.dumps({key: values for key, values in chosen.items() if values}, separators=(",", ":")) if any(chosen.values()) else None


def auth_of(auth: str | None) -> dict[str, str]:
    """base64url JSON; `{}` stands for no credentials."""
    return {} if auth is None else {"X-Registry-Auth": auth or "e30="}


# system


def info() -> Call:
    return Call("GET", "/info")


def version() -> Call:
    return Call("GET", "/version")


def ping() -> Call:
    return Call("HEAD", "/_ping")


def events(since: str = "", until: str = "", filters: Filters | None = None) -> Call:
    return Call("GET", "/events", {"since": since or None, "until": until or None, "filters": filters_of(filters)})


# swarm


def swarm_inspect() -> Call:
    return Call("GET", "/swarm")


def swarm_init(request: Mapping[str, Any]) -> Call:
    return Call("POST", "/swarm/init", body=request)


def swarm_join(request: Mapping[str, Any]) -> Call:
    return Call("POST", "/swarm/join", body=request)


def swarm_leave(force: bool = False) -> Call:
    return Call("POST", "/swarm/leave", {"force": "1" if force else None})


def swarm_update(
    version: int, spec: Mapping[str, Any], *, worker_token: bool = False, manager_token: bool = False, unlock_key: bool = False
) -> Call:
    query = {
        "version": version,
        "rotateWorkerToken": worker_token,
        "rotateManagerToken": manager_token,
        "rotateManagerUnlockKey": unlock_key,
    }
    return Call("POST", "/swarm/update", query, spec)


def unlock_key() -> Call:
    return Call("GET", "/swarm/unlockkey")


def swarm_unlock(key: str) -> Call:
    return Call("POST", "/swarm/unlock", body={"UnlockKey": key})


# nodes


def node_list(filters: Filters | None = None) -> Call:
    return Call("GET", "/nodes", {"filters": filters_of(filters)})


def node_inspect(node: str) -> Call:
    return Call("GET", f"/nodes/{quote(node)}")


def node_update(id: str, version: int, spec: Mapping[str, Any]) -> Call:
    return Call("POST", f"/nodes/{quote(id)}/update", {"version": version}, spec)


def node_remove(node: str, force: bool = False) -> Call:
    return Call("DELETE", f"/nodes/{quote(node)}", {"force": "1" if force else None})


# services and tasks


def service_list(filters: Filters | None = None, status: bool = False) -> Call:
    return Call("GET", "/services", {"filters": filters_of(filters), "status": True if status else None})


def service_inspect(service: str, defaults: bool = False) -> Call:
    return Call("GET", f"/services/{quote(service)}", {"insertDefaults": defaults})


def service_create(spec: Mapping[str, Any], auth: str | None = None) -> Call:
    return Call("POST", "/services/create", body=spec, headers=auth_of(auth))


def service_update(
    id: str, version: int, spec: Mapping[str, Any], *, auth: str | None = None, auth_from: str = "", rollback: str = ""
) -> Call:
    query = {"version": version, "registryAuthFrom": auth_from or None, "rollback": rollback or None}
    return Call("POST", f"/services/{quote(id)}/update", query, spec, auth_of(auth))


def service_remove(service: str) -> Call:
    return Call("DELETE", f"/services/{quote(service)}")


def task_list(filters: Filters | None = None) -> Call:
    return Call("GET", "/tasks", {"filters": filters_of(filters)})


def task_inspect(task: str) -> Call:
    return Call("GET", f"/tasks/{quote(task)}")


def logs(
    kind: str,
    id: str,
    *,
    follow: bool = False,
    since: str = "",
    until: str = "",
    tail: str = "all",
    timestamps: bool = False,
    details: bool = False,
) -> Call:
    """`kind` is services, tasks or containers. `since` and `until` are Unix times (`1795405916.000000000`)."""
    query = {
        "stdout": "1",
        "stderr": "1",
        "since": since or None,
        "until": until or None,
        "timestamps": "1" if timestamps else None,
        "details": "1" if details else None,
        "follow": "1" if follow else None,
        "tail": tail,
    }
    return Call("GET", f"/{kind}/{quote(id)}/logs", query)


# what a service refers to


def network_inspect(network: str, scope: str = "", verbose: bool = False) -> Call:
    return Call("GET", f"/networks/{quote(network)}", {"scope": scope or None, "verbose": True if verbose else None})


def network_list(filters: Filters | None = None) -> Call:
    return Call("GET", "/networks", {"filters": filters_of(filters)})


def network_create(request: Mapping[str, Any]) -> Call:
    return Call("POST", "/networks/create", body=request)


def network_remove(network: str) -> Call:
    return Call("DELETE", f"/networks/{quote(network)}")


def network_prune(filters: Filters | None = None) -> Call:
    return Call("POST", "/networks/prune", {"filters": filters_of(filters)})


def network_check(network: str, repair: bool) -> Call:
    """A stream of JSON lines. Ours; Docker has no such call."""
    query = {"network": network or None, "repair": "1" if repair else None}
    return Call("POST" if repair else "GET", "/skep/network/check", query)


def network_connect(network: str, container: str, endpoint: Mapping[str, Any]) -> Call:
    return Call("POST", f"/networks/{quote(network)}/connect", body={"Container": container, "EndpointConfig": endpoint})


def network_disconnect(network: str, container: str, force: bool) -> Call:
    return Call("POST", f"/networks/{quote(network)}/disconnect", body={"Container": container, "Force": force})


def secret_list(filters: Filters | None = None) -> Call:
    return Call("GET", "/secrets", {"filters": filters_of(filters)})


def config_list(filters: Filters | None = None) -> Call:
    return Call("GET", "/configs", {"filters": filters_of(filters)})


def distribution(image: str, auth: str | None = None) -> Call:
    return Call("GET", f"/distribution/{quote(image, '/:@')}/json", headers=auth_of(auth))


# containers of the node


def container_list(filters: Filters | None = None, *, all: bool = False, limit: int = -1, size: bool = False) -> Call:
    query = {
        "all": "1" if all else None,
        "limit": limit if limit > 0 else None,
        "size": "1" if size else None,
        "filters": filters_of(filters),
    }
    return Call("GET", "/containers/json", query)


def container_inspect(container: str, size: bool = False) -> Call:
    return Call("GET", f"/containers/{quote(container)}/json", {"size": "1" if size else None})


def exec_create(container: str, request: Mapping[str, Any]) -> Call:
    return Call("POST", f"/containers/{quote(container)}/exec", body=request)


def exec_start(id: str, *, detach: bool = False, tty: bool = False, size: tuple[int, int] | None = None) -> Call:
    """Hijacked unless detached. `size` is (rows, columns)."""
    body: dict[str, Any] = {"Detach": detach, "Tty": tty}
    if size:
        body["ConsoleSize"] = list(size)
    return Call("POST", f"/exec/{quote(id)}/start", body=body)


def exec_inspect(id: str) -> Call:
    return Call("GET", f"/exec/{quote(id)}/json")


def exec_resize(id: str, rows: int, columns: int) -> Call:
    return Call("POST", f"/exec/{quote(id)}/resize", {"h": rows, "w": columns})


def inspect(kind: str, id: str) -> Call:
    """Images, volumes, plugins and the like: `/images/x/json`, `/volumes/x`."""
    return Call("GET", f"/{kind}/{quote(id, '/:@')}" + ("/json" if kind in ("images", "plugins") else ""))
