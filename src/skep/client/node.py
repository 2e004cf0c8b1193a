"""Calls of the Docker Engine API about one node's own containers, images and volumes, as data."""

from __future__ import annotations

from skep.client.calls import Call, auth_of, filters_of, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from skep.client.calls import Filters

# containers


def container_create(request: Mapping[str, Any], name: str = "", platform: str = "") -> Call:
    return Call("POST", "/containers/create", {"name": name or None, "platform": platform or None}, request)


def container_attach(container: str, *, stdin: bool, stdout: bool, stderr: bool, keys: str = "") -> Call:
    """Hijacked; may be asked before the start, so that nothing is lost."""
    query = {
        "stream": "1",
        "stdin": "1" if stdin else None,
        "stdout": "1" if stdout else None,
        "stderr": "1" if stderr else None,
        "detachKeys": keys or None,
    }
    return Call("POST", f"/containers/{quote(container)}/attach", query)


def container_wait(container: str, condition: str = "") -> Call:
    """Answered at once, its body when the container has ended: `condition` is not-running, next-exit or removed."""
    return Call("POST", f"/containers/{quote(container)}/wait", {"condition": condition or None})


def container_start(container: str) -> Call:
    return Call("POST", f"/containers/{quote(container)}/start")


def container_stop(container: str, timeout: int | None = None, signal: str = "", *, restart: bool = False) -> Call:
    verb = "restart" if restart else "stop"
    return Call("POST", f"/containers/{quote(container)}/{verb}", {"t": timeout, "signal": signal or None})


def container_kill(container: str, signal: str = "") -> Call:
    return Call("POST", f"/containers/{quote(container)}/kill", {"signal": signal or None})


def container_act(container: str, verb: str) -> Call:
    """pause and unpause."""
    return Call("POST", f"/containers/{quote(container)}/{verb}")


def container_rename(container: str, name: str) -> Call:
    return Call("POST", f"/containers/{quote(container)}/rename", {"name": name})


def container_update(container: str, request: Mapping[str, Any]) -> Call:
    return Call("POST", f"/containers/{quote(container)}/update", body=request)


def container_remove(container: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> Call:
    query = {"force": "1" if force else None, "v": "1" if volumes else None, "link": "1" if link else None}
    return Call("DELETE", f"/containers/{quote(container)}", query)


def container_resize(container: str, rows: int, columns: int) -> Call:
    return Call("POST", f"/containers/{quote(container)}/resize", {"h": rows, "w": columns})


def container_top(container: str, arguments: str = "") -> Call:
    return Call("GET", f"/containers/{quote(container)}/top", {"ps_args": arguments or None})


def container_stats(container: str, stream: bool) -> Call:
    return Call("GET", f"/containers/{quote(container)}/stats", {"stream": "1" if stream else "0"})


def container_changes(container: str) -> Call:
    return Call("GET", f"/containers/{quote(container)}/changes")


def container_export(container: str) -> Call:
    return Call("GET", f"/containers/{quote(container)}/export")


def archive_stat(container: str, path: str) -> Call:
    return Call("HEAD", f"/containers/{quote(container)}/archive", {"path": path})


def archive_get(container: str, path: str) -> Call:
    return Call("GET", f"/containers/{quote(container)}/archive", {"path": path})


def archive_put(container: str, path: str, body: Any, owners: bool = False) -> Call:
    """`body` is a tar, or an iterator of its parts."""
    query = {"path": path, "noOverwriteDirNonDir": "true", "copyUIDGID": "true" if owners else None}
    return Call("PUT", f"/containers/{quote(container)}/archive", query, body)


def prune(kind: str, filters: Filters | None = None, query: Mapping[str, str] | None = None) -> Call:
    """`kind` is containers, images, volumes, networks or build."""
    return Call("POST", f"/{kind}/prune", {**(query or {}), "filters": filters_of(filters)})


# images and volumes


def image_list(filters: Filters | None = None, *, all: bool = False) -> Call:
    return Call("GET", "/images/json", {"all": "1" if all else None, "filters": filters_of(filters)})


def image_pull(image: str, wanted: str, auth: str | None = None, platform: str = "", *, all: bool = False) -> Call:
    """`wanted` is a tag or a digest."""
    query = {"fromImage": image, "tag": None if all else wanted, "platform": platform or None}
    return Call("POST", "/images/create", query, headers=auth_of(auth))


def image_import(source: str, name: str, message: str, changes: Iterable[str], platform: str, body: Any) -> Call:
    query = {"fromSrc": source, "repo": name or None, "message": message or None, "platform": platform or None}
    call = Call("POST", "/images/create", query, body)
    call.lists = {"changes": list(changes)}
    return call


def image_push(image: str, tag: str, auth: str | None = None, platform: str = "") -> Call:
    return Call("POST", f"/images/{quote(image, '/:')}/push", {"tag": tag or None, "platform": platform or None}, headers=auth_of(auth))


def image_tag(image: str, name: str, tag: str) -> Call:
    return Call("POST", f"/images/{quote(image, '/:@')}/tag", {"repo": name, "tag": tag or None})


def image_remove(image: str, *, force: bool = False, keep_parents: bool = False, platforms: Iterable[str] = ()) -> Call:
    call = Call("DELETE", f"/images/{quote(image, '/:@')}", {"force": "1" if force else None, "noprune": "1" if keep_parents else None})
    call.lists = {"platforms": list(platforms)}
    return call


def image_load(body: Any, quiet: bool, platform: str = "") -> Call:
    query = {"quiet": "1" if quiet else "0", "platform": platform or None}
    return Call("POST", "/images/load", query, body, {"Content-Type": "application/x-tar"})


def image_save(images: Iterable[str], platform: str = "") -> Call:
    call = Call("GET", "/images/get", {"platform": platform or None})
    call.lists = {"names": list(images)}
    return call


def image_history(image: str, platform: str = "") -> Call:
    return Call("GET", f"/images/{quote(image, '/:@')}/history", {"platform": platform or None})


def volume_list(filters: Filters | None = None) -> Call:
    return Call("GET", "/volumes", {"filters": filters_of(filters)})


def volume_create(request: Mapping[str, Any]) -> Call:
    return Call("POST", "/volumes/create", body=request)


def volume_remove(volume: str, force: bool = False) -> Call:
    return Call("DELETE", f"/volumes/{quote(volume)}", {"force": "1" if force else None})


def disk_usage() -> Call:
    return Call("GET", "/system/df")


def login(request: Mapping[str, Any]) -> Call:
    return Call("POST", "/auth", body=request)
