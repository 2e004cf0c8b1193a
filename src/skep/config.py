"""skepd's settings: one list, from which come the flags, the TOML file's keys, the defaults and their help.

A flag wins over the file, the file over the default. Lists are given by repeating the flag, in TOML as arrays. An unknown key, a wrong type
or a value that cannot be used is a BadSetting that says which setting, where it stands and what to write.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class BadSetting(ValueError):
    """A setting that cannot be used: one line that says which, where it stands, and what to write instead."""


DEFAULT_DATA_ROOT = "/var/lib/skep"
DEFAULT_RUN_ROOT = "/run/skep"
DEFAULT_SOCKET = "/run/skep/docker.sock"
DEFAULT_CONFIG = "/etc/skep/skepd.toml"
DOCKER_SOCKET = "/var/run/docker.sock"


def setting(default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    meta = {"help": help, "choices": tuple(choices)}
    if isinstance(default, tuple):
        return field(default=default, metadata=meta | {"list": True})
    return field(default=default, metadata=meta)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Names in the TOML file are the fields', flags have dashes in the place of underscores."""

    data_root: str = setting(DEFAULT_DATA_ROOT, "folder for images, containers and the cluster's state")
    run_root: str = setting(DEFAULT_RUN_ROOT, "folder for sockets and run state (cleared by a reboot)")
    host: tuple[str, ...] = setting(
        (f"unix://{DEFAULT_SOCKET}",), "where the API is served: unix://PATH, tcp://ADDRESS:PORT (mutual TLS); repeatable"
    )
    tlscert: str = setting("", "certificate (PEM) with which TCP is served")
    tlskey: str = setting("", "key of that certificate")
    tlscacert: str = setting("", "CA whose certificates clients on TCP must have")
    docker_socket: str = setting(
        DOCKER_SOCKET, "socket that is claimed too when nobody else has it, so that docker needs no DOCKER_HOST; empty: none"
    )
    socket_group: str = setting("docker", "group that may use the unix sockets (mode 0660), if it exists")
    hostname: str = setting("", "name of this node; empty: the host's name")
    label: tuple[str, ...] = setting((), "label of this node's engine, KEY=VALUE; repeatable")
    generic_resource: tuple[str, ...] = setting((), "resource this node offers, KIND=NUMBER or KIND=NAME; repeatable")
    runtime: str = setting("auto", "what runs containers; auto: crun where it works, else runc", ("auto", "crun", "runc"))
    forwarding: str = setting(
        "plain",
        "how published ports cross this host; aside: clear of the FORWARD chain, for hosts where dockerd has set it to DROP",
        ("plain", "aside"),
    )
    cgroup_parent: str = setting("skep", "cgroup under which containers run")
    insecure_registry: tuple[str, ...] = setting(
        (), "registry HOST[:PORT] that may be spoken to without TLS; repeatable (loopback always may)"
    )
    registry_mirror: tuple[str, ...] = setting((), "mirror for docker.io, as a URL; repeatable")
    image_gc_high: str = setting("85", "percent of data_root's disk in use from which on unused images are removed; 100: never")
    image_gc_low: str = setting("80", "percent of data_root's disk in use at which that ends")
    log_level: str = setting("info", "how much is logged", ("debug", "info", "warning", "error"))
    log_format: str = setting("text", "how it is logged", ("text", "json"))


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="skepd",
        description="skep's node daemon: serves the Docker Engine API, runs containers, and takes part in a cluster\n"
        "once told to (swarm init, swarm join).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--config", metavar="FILE", help=f"TOML file with settings (default: {DEFAULT_CONFIG} if it exists)")
    p.add_argument("--version", action="store_true", help="print the version and exit")
    for f in dataclasses.fields(Settings):
        many = f.metadata.get("list", False)
        shown = ", ".join(f.default) if many and isinstance(f.default, tuple) else f.default
        p.add_argument(
            "--" + f.name.replace("_", "-"),
            dest=f.name,
            action="append" if many else "store",
            choices=f.metadata["choices"] or None,
            metavar=None if f.metadata["choices"] else f.name.rpartition("_")[2].upper(),
            help=f"{f.metadata['help']} (default: {shown if shown != '' else 'none'})".replace("%", "%%"),
        )
    return p


def read_file(path: Path) -> dict[str, Any]:
    """Checked settings of a TOML file."""
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as e:
        raise BadSetting(f"{path}: {e.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise BadSetting(f"{path}: not TOML: {e}") from None
    known = {f.name: f for f in dataclasses.fields(Settings)}
    out: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name not in known:
            raise BadSetting(f"{path}: unknown setting {key!r}; known are: {', '.join(sorted(known))}")
        meta = known[name].metadata
        if meta.get("list"):
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise BadSetting(f"{path}: {key} must be an array of strings")
            out[name] = tuple(value)
        elif not isinstance(value, str):
            raise BadSetting(f'{path}: {key} must be a string, write {key} = "{value}"')
        elif meta["choices"] and value not in meta["choices"]:
            raise BadSetting(f"{path}: {key} = {value!r}: must be one of {', '.join(meta['choices'])}")
        else:
            out[name] = value
    return out


def load(argv: Sequence[str], *, default: str = DEFAULT_CONFIG) -> Settings:
    """Settings from flags and file (`default` is read if it exists and no other is named); raises BadSetting.

    argparse itself exits on unknown flags.
    """
    args = vars(parser().parse_args(argv))
    given = args.pop("config")
    args.pop("version")
    values: dict[str, Any] = {}
    if given or Path(default).exists():
        values |= read_file(Path(given or default))
    values |= {k: tuple(v) if isinstance(v, list) else v for k, v in args.items() if v is not None}
    settings = Settings(**values)
    check(settings)
    return settings


def check(s: Settings) -> None:
    for name in ("data_root", "run_root"):
        if not getattr(s, name).startswith("/"):
            raise BadSetting(f"{name} = {getattr(s, name)!r}: must be an absolute path")
    for host in s.host:
        scheme, _, rest = host.partition("://")
        if scheme == "tcp":
            tcp_address(host)
            for name in ("tlscert", "tlskey", "tlscacert"):
                if not getattr(s, name):
                    raise BadSetting(f"host = {host!r}: TCP is served with mutual TLS only: set {name} to a file")
            continue
        if scheme != "unix" or not rest.startswith("/"):
            raise BadSetting(f"host = {host!r}: must be unix:///PATH or tcp://ADDRESS:PORT")
        if len(rest) > 107:
            raise BadSetting(f"host = {host!r}: a socket's path may have 107 characters")
    for name in ("image_gc_high", "image_gc_low"):
        given = getattr(s, name)
        if not given.isascii() or not given.isdigit() or not 0 < int(given) <= 100:
            raise BadSetting(f"{name} = {given!r}: must be a number from 1 to 100")
    if int(s.image_gc_low) > int(s.image_gc_high):
        raise BadSetting(f"image_gc_low = {s.image_gc_low!r}: must not be above image_gc_high, which is {s.image_gc_high!r}")
    for pair in (*s.label, *s.generic_resource):
        if "=" not in pair:
            raise BadSetting(f"{pair!r}: must be KEY=VALUE")


def tcp_address(host: str) -> tuple[str, int]:
    """`tcp://0.0.0.0:2376` -> address and port. Raises BadSetting."""
    address, _, port = host.removeprefix("tcp://").rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    try:
        number = int(port)
        ipaddress.ip_address(address)
    except ValueError:
        number = 0
    if not 0 < number < 65536:
        raise BadSetting(f"host = {host!r}: must be tcp://ADDRESS:PORT, as tcp://0.0.0.0:2376")
    return address, number
