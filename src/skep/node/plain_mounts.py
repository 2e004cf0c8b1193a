"""The mounts of a plain container: `-v`, `--mount`, `--tmpfs`, `--volumes-from` and the image's volumes, brought to one list.

What is asked for is checked before anything is made; then volumes are made, named and anonymous. See docs/containers.md.
"""

from __future__ import annotations

import os
import platform
import posixpath
import re
from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from skep.engine.base import Container, Mount
from skep.errors import Invalid, NotFound, SkepError
from skep.model.spec import Mount as MountSpec
from skep.model.spec import TmpfsOptions
from skep.node.plain_config import Config, HostConfig, Point, record_of
from skep.node.volumes import Volumes
from skep.plan.container import PROPAGATIONS, check_mount

_IGNORED = ("cached", "delegated", "consistent", "z", "Z")
"""Consistency is Docker Desktop's affair; relabelling is for SELinux, which Docker also does nothing for where it is off."""


Made = tuple[tuple[Point, ...], tuple[Mount, ...]]
READS_ONLY_BELOW = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) >= (5, 12)
"""The kernel can make a mount read-only with all that is mounted below it. Where it can, `readonly` means that, as in Docker since 25."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A mount as asked for, and what its volume is to be made with."""

    point: Point
    copy_up: bool = False
    subpath: str = ""
    recursive: bool = True
    options: tuple[str, ...] = ()
    driver: str = ""
    driver_options: dict[str, str] = {}
    labels: dict[str, str] = {}
    listed: bool = True
    """Is among `Mounts` of inspect (those of --tmpfs are in HostConfig only)."""


def bad(specification: str) -> Invalid:
    return Invalid(f"invalid volume specification: '{specification}'")


def destination(path: str, specification: str = "") -> str:
    if not path.startswith("/"):
        raise Invalid(f"invalid volume specification: '{specification or path}': invalid mount config for type \"volume\": invalid mount "
                      f"path: '{path}' mount path must be absolute")  # fmt: skip
    clean = posixpath.normpath(path)
    if clean == "/":
        raise Invalid(f"invalid volume specification: '{specification or path}': invalid specification: destination can't be '/'")
    return clean


def parse_bind(text: str) -> Wish:
    """`SOURCE:TARGET[:MODE]` of `-v`; `TARGET` alone asks for an anonymous volume."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise bad(text)
    if len(parts) == 1:
        return anonymous(destination(parts[0], text))
    source, target = parts[0], destination(parts[1], text)
    mode = parts[2] if len(parts) == 3 else ""
    words = [word for word in mode.split(",") if word]
    read_only = "ro" in words
    propagation = [word for word in words if word in PROPAGATIONS]
    unknown = [word for word in words if word not in (*PROPAGATIONS, *_IGNORED, "ro", "rw", "nocopy", "copy")]
    if unknown or len(propagation) > 1 or (read_only and "rw" in words):
        raise Invalid(f"invalid mode: {mode}")
    if source.startswith("/"):
        if "nocopy" in words or "copy" in words:
            raise Invalid(f"invalid mode: {mode}")
        point = Point(
            type="bind",
            source=posixpath.normpath(source),
            target=target,
            mode=mode,
            read_write=not read_only,
            propagation=propagation[0] if propagation else "rprivate",
            make_source=True,
        )
        return Wish(point=point, options=("rro",) if read_only and READS_ONLY_BELOW else ())
    if propagation:
        raise Invalid(f"invalid mode: {mode}")
    point = Point(type="volume", name=source, target=target, mode=mode or "z", read_write=not read_only)
    return Wish(point=point, copy_up="nocopy" not in words)


def anonymous(target: str) -> Wish:
    return Wish(point=Point(type="volume", target=target, anonymous=True), copy_up=True)


def parse_mount(asked: MountSpec) -> Wish:
    """`--mount`."""
    target = check_mount(asked)
    point = Point(type=asked.type, target=target, read_write=not asked.read_only)
    if asked.type == "tmpfs":
        return Wish(point=point, options=tuple(tmpfs_options(asked.tmpfs_options or TmpfsOptions())))
    if asked.type == "volume":
        wanted = asked.volume_options
        driver = wanted.driver_config if wanted is not None else None
        return Wish(
            point=msgspec.structs.replace(point, name=asked.source, anonymous=not asked.source, mode="z"),
            copy_up=wanted is None or not wanted.no_copy,
            subpath=wanted.subpath if wanted is not None else "",
            driver=driver.name if driver is not None else "",
            driver_options=dict((driver.options if driver is not None else None) or {}),
            labels=dict((wanted.labels if wanted is not None else None) or {}),
        )
    bind = asked.bind_options
    make = bind is not None and bind.create_mountpoint
    if not make and not os.path.lexists(asked.source):
        raise Invalid(f'invalid mount config for type "bind": bind source path does not exist: {asked.source}')
    propagation = (bind.propagation if bind is not None else "") or "rprivate"
    force = bind is not None and bind.read_only_force_recursive
    point = msgspec.structs.replace(point, source=posixpath.normpath(asked.source), propagation=propagation, make_source=make)
    recursive = bind is None or not bind.non_recursive
    writable_below = bind is not None and bind.read_only_non_recursive
    all_read_only = force or (asked.read_only and recursive and not writable_below and READS_ONLY_BELOW)
    return Wish(point=point, recursive=recursive, options=("rro",) if all_read_only else ())


def tmpfs_options(options: TmpfsOptions) -> list[str]:
    found = [f"size={options.size_bytes}"] if options.size_bytes else []
    found += [f"mode={options.mode:o}"] if options.mode else []
    return found + ["=".join(option) for option in options.options or ()]


def wishes(config: Config, host: HostConfig, find: Callable[[str], Container]) -> list[Wish]:
    """All that is asked for, one per target. Raises Invalid, NotFound. `find`: the container of a name, or NotFound."""
    found: dict[str, Wish] = {}
    for entry in host.volumes_from:
        reference, _, mode = entry.partition(":")
        if mode not in ("", "ro", "rw", "z", "Z"):
            raise Invalid(f"invalid mode: {mode}")
        for wish in inherited(find(reference), mode):
            found[wish.point.target] = wish
    asked = [parse_bind(text) for text in host.binds] + [parse_mount(mount) for mount in host.mounts]
    for target, options in host.tmpfs.items():
        point = Point(type="tmpfs", target=destination(target))
        asked.append(Wish(point=point, options=tuple(word for word in options.split(",") if word), listed=False))
    own: set[str] = set()
    for wish in asked:
        target = wish.point.target
        if target in own:
            raise Invalid(f"Duplicate mount point: {target}")
        own.add(target)
        found[target] = wish
    for path in config.volumes:
        target = destination(path)
        if target not in found:
            found[target] = anonymous(target)
    return list(found.values())


def inherited(other: Container, mode: str) -> list[Wish]:
    """`--volumes-from`: its binds and volumes, where it has them."""
    record = record_of(other.config)
    if record is None:
        raise Invalid(f"container {other.config.name} is a task's: its volumes belong to its service")
    mounts = {posixpath.normpath(mount.target): mount for mount in other.config.mounts}
    found = []
    for point in record.points:
        if point.type not in ("bind", "volume"):
            continue
        read_write = point.read_write and mode != "ro"
        mount = mounts[point.target]
        found.append(
            Wish(
                point=msgspec.structs.replace(point, read_write=read_write, mode=mode, anonymous=False),
                copy_up=mount.copy_up,
                recursive=mount.recursive,
                options=mount.options,
            )
        )
    return found


async def make(wanted: list[Wish], volumes: Volumes | None, holding: ExitStack) -> Made:
    """Points for the record and mounts for the engine; named and anonymous volumes exist when it returns, and nobody removes one as long as
    `holding` is open. Where it fails, the anonymous ones it has made are gone again. `volumes` is needed where one is wished for."""
    points: list[Point] = []
    mounts: list[Mount] = []
    made: list[str] = []
    try:
        for wish in wanted:
            point = wish.point
            if point.type == "volume" and not point.source and volumes is not None:
                volume = await volumes.create(point.name, driver=wish.driver, options=wish.driver_options, labels=wish.labels)
                if point.anonymous:
                    made.append(volume.name)
                source = volumes.subpath(volume, wish.subpath) if wish.subpath else volumes.mountpoint(volume)
                point = msgspec.structs.replace(point, name=volume.name, source=source)
            if point.type == "volume" and volumes is not None:
                holding.enter_context(volumes.hold(point.name))
            if wish.listed:
                points.append(point)
            mounts.append(
                Mount(
                    target=point.target,
                    source=point.source,
                    kind="tmpfs" if point.type == "tmpfs" else "bind",
                    read_only=not point.read_write,
                    propagation=point.propagation or "rprivate",
                    recursive=wish.recursive,
                    options=wish.options,
                    copy_up=wish.copy_up and point.type == "volume",
                    volume=point.name if point.type == "volume" else "",
                )
            )
    except BaseException:
        holding.close()
        if volumes is not None:
            await discard(volumes, made)
        raise
    return tuple(points), tuple(mounts)


async def discard(volumes: Volumes, names: list[str]) -> None:
    """Anonymous volumes whose container is gone; one that another container has taken over (`--volumes-from`) stays."""
    for name in names:
        try:
            await volumes.remove(name, force=True)
        except SkepError:
            continue


def make_sources(points: tuple[Point, ...]) -> None:
    """Folders of the host that `-v` makes when they are not there. Blocks."""
    for point in points:
        if point.type != "bind":
            continue
        if os.path.exists(point.source):
            continue
        if not point.make_source:
            raise NotFound(f'invalid mount config for type "bind": bind source path does not exist: {point.source}')
        try:
            os.makedirs(point.source, exist_ok=True)
        except OSError as error:
            raise SkepError(f"error while creating mount source path '{point.source}': mkdir {point.source}: {error.strerror}") from None


def anonymous_of(points: tuple[Point, ...]) -> list[str]:
    return [point.name for point in points if point.anonymous]
