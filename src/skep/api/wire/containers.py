"""This node's containers as Docker's clients see them: what the node knows of them, with names of networks where the cluster is at hand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from skep.api.wire import plain
from skep.api.wire.networks import mac_of
from skep.api.wire.times import ZERO, ago, stamp
from skep.clock import SECOND
from skep.engine.base import ContainerConfig, Image
from skep.ids import endpoint_id
from skep.node.containers import Described
from skep.node.health import Health
from skep.node.task_form import Asked, told

TASK_ID = "com.docker.swarm.task.id"
_SAFE = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


def state(described: Described) -> str:
    """Docker's word: created, running, paused, restarting, exited."""
    container = described.container
    if described.restarting:
        return "restarting"
    if container.running:
        return "paused" if container.paused else "running"
    return "exited" if container.exit is not None else "created"


def status(described: Described, now: int) -> str:
    """`Up 5 minutes (healthy)`, as `docker ps` prints it."""
    container = described.container
    if container.running:
        up = f"Up {ago(now - container.started_at)}"
        if container.paused:
            return up + " (Paused)"
        if described.health is not None:
            return up + (" (health: starting)" if described.health.status == "starting" else f" ({described.health.status})")
        return up
    if container.exit is not None:
        word = "Restarting" if described.restarting else "Exited"
        return f"{word} ({container.exit.code}) {ago(now - container.exit.at)} ago"
    return "Created"


def image_name(config: ContainerConfig, image: Image | None) -> str:
    """What the user asked for: kept by the runtime with the container, else the image's first name."""
    asked = config.extra.get("image")
    if isinstance(asked, str) and asked:
        return asked
    if image is not None and image.tags:
        return image.tags[0]
    return config.image


def command(args: Iterable[str]) -> str:
    """Arguments in one line, quoted where Docker quotes them."""
    return " ".join(arg if _SAFE.fullmatch(arg) else shlex.quote(arg) for arg in args)


def networks(described: Described, names: Mapping[str, str]) -> dict[str, Any]:
    """`NetworkSettings.Networks`. `names`: network id -> name; where it is not known (on a worker) the id stands for it."""
    running = described.container.running
    shown: dict[str, Any] = {}
    for attachment in described.networks:
        host, _, prefix = (attachment.addresses[0] if attachment.addresses else "").partition("/")
        shown[names.get(attachment.network_id, attachment.network_id)] = _place(
            endpoint_id(described.task_id, attachment.network_id) if running else "",
            attachment.network_id,
            host,
            int(prefix or 0) if running else 0,
            aliases=list(attachment.aliases) or None,
            running=running,
            gateway=attachment.gateway if running else "",
        )
    if not shown:
        name = "host" if described.container.config.host_network else "bridge"
        shown[name] = _place("", "", "", 0, aliases=None, running=running)
    return shown


def _place(
    endpoint: str, network_id: str, address: str, prefix: int, *, aliases: list[str] | None, running: bool, gateway: str = ""
) -> dict[str, Any]:
    return {
        "IPAMConfig": {"IPv4Address": address} if address else None,
        "Links": None,
        "Aliases": aliases,
        "MacAddress": mac_of(address) if running else "",
        "DriverOpts": None,
        "GwPriority": 0,
        "NetworkID": network_id,
        "EndpointID": endpoint,
        "Gateway": gateway,
        "IPAddress": address if running else "",
        "IPPrefixLen": prefix,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": None,
    }


def _asked(described: Described, image: Image | None) -> Asked:
    """What was asked of a task's container."""
    return described.asked or told(described.container.config, image)


def ports(described: Described, image: Image | None) -> list[dict[str, Any]]:
    """Ports of the image, and those published on this node; none on the host's network, where a container has no port of its own."""
    if not described.container.running or described.container.config.host_network:
        return []
    shown: list[dict[str, Any]] = []
    published = {(p.target_port, p.protocol): p.published_port for p in described.ports}
    exposed = {_port(text) for text in (image.config.exposed_ports if image is not None else ())}
    for number, protocol in sorted(exposed | set(published)):
        if public := published.get((number, protocol)):
            shown.append({"IP": "0.0.0.0", "PrivatePort": number, "PublicPort": public, "Type": protocol})
        else:
            shown.append({"PrivatePort": number, "Type": protocol})
    return shown


def _port(text: str) -> tuple[int, str]:
    number, _, protocol = text.partition("/")
    return (int(number.partition("-")[0]) if number.partition("-")[0].isdigit() else 0, protocol or "tcp")


def list_form(described: Described, image: Image | None, names: Mapping[str, str], now: int) -> dict[str, Any]:
    """An element of GET /containers/json."""
    container = described.container
    config = container.config
    record = described.plain
    return {
        "Id": config.id,
        "Names": [f"/{config.name}"],
        "Image": image_name(config, image),
        "ImageID": config.image,
        "Command": command(config.args),
        "Created": container.created_at // SECOND,
        "Ports": ports(described, image) if record is None else plain.ports_list(record, container),
        "Labels": config.labels,
        "State": state(described),
        "Status": status(described, now),
        "HostConfig": {"NetworkMode": _network_mode(described)},
        "NetworkSettings": {"Networks": networks(described, names) if record is None else plain.networks_form(record)},
        "Mounts": plain.mounts_form(_asked(described, image).points if record is None else record.points),
    }


def _network_mode(described: Described) -> str:
    if described.plain is not None:
        return described.plain.host.network_mode
    return "host" if described.container.config.host_network else "bridge"


def _state(described: Described) -> dict[str, Any]:
    container = described.container
    ended = container.exit
    record = described.plain
    failed = record is not None and bool(record.error) and not container.running
    shown: dict[str, Any] = {
        "Status": state(described),
        "Running": container.running or described.restarting,
        "Paused": container.paused,
        "Restarting": described.restarting,
        "OOMKilled": ended.oom if ended is not None else False,
        "Dead": False,
        "Pid": container.pid if container.running else 0,
        "ExitCode": ended.code if ended is not None else 0,
        "Error": ended.error if ended is not None and not ended.oom else "",
        "StartedAt": stamp(container.started_at),
        "FinishedAt": stamp(ended.at) if ended is not None else ZERO,
    }
    if failed and record is not None:
        shown |= {"ExitCode": record.error_code, "Error": record.error}
    if described.health is not None:
        shown["Health"] = _health(described.health)
    return shown


def _health(health: Health) -> dict[str, Any]:
    log = [{"Start": stamp(r.start), "End": stamp(r.end), "ExitCode": r.code, "Output": r.output} for r in health.results]
    return {"Status": health.status, "FailingStreak": health.failing_streak, "Log": log}


def _config(described: Described, image: Image | None) -> dict[str, Any]:
    return {**plain.config_form(_asked(described, image).config), "Image": image_name(described.container.config, image)}


def inspect_form(described: Described, image: Image | None, names: Mapping[str, str], driver: str, execs: list[str]) -> dict[str, Any]:
    """GET /containers/{id}/json."""
    container = described.container
    config = container.config
    record = described.plain
    return {
        "Id": config.id,
        "Created": stamp(container.created_at),
        "Path": config.args[0] if config.args else "",
        "Args": list(config.args[1:]),
        "State": _state(described),
        "Image": config.image,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": "",
        "Name": f"/{config.name}",
        "RestartCount": record.restarts if record is not None else 0,
        "Driver": driver,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": execs or None,
        "HostConfig": plain.host_form(_asked(described, image).host if record is None else record.host),
        "GraphDriver": {"Data": None, "Name": driver},
        "Mounts": plain.mounts_form(_asked(described, image).points if record is None else record.points),
        "Config": _config(described, image) if record is None else plain.config_form(record.config),
        "NetworkSettings": plain.network_settings(record, container) if record is not None else _settings(described, image, names),
    }


def _settings(described: Described, image: Image | None, names: Mapping[str, str]) -> dict[str, Any]:
    """`NetworkSettings` of a task's container; its place on `bridge` stands there twice, as in Docker."""
    container = described.container
    shown = networks(described, names)
    bridge = shown.get("bridge", {}) if described.networks else {}
    return {
        "Bridge": "",
        "SandboxID": container.config.id if container.running and container.config.netns else "",
        "SandboxKey": container.config.netns if container.running else "",
        "Ports": {
            f"{p['PrivatePort']}/{p['Type']}": [{"HostIp": p["IP"], "HostPort": str(p["PublicPort"])}] if "PublicPort" in p else None
            for p in ports(described, image)
        },
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": bridge.get("EndpointID", ""),
        "Gateway": bridge.get("Gateway", ""),
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": bridge.get("IPAddress", ""),
        "IPPrefixLen": bridge.get("IPPrefixLen", 0),
        "IPv6Gateway": "",
        "MacAddress": bridge.get("MacAddress", ""),
        "Networks": shown,
    }
