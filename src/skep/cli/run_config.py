"""From the flags of `skep run` to the body of POST /containers/create, as the docker CLI sends it field for field.

Pure but for files that flags name (`--env-file`, `--label-file`, seccomp profiles). Raises Bad in Docker's words.
"""

from __future__ import annotations

import re

from skep.cli.options import capabilities, environment_file, key_values, with_values
from skep.cli.run_values import bind, device, exposed, published, restart, security
from skep.cli.words import Bad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from skep.cli.flags import Values

BUILT_IN = ("default", "bridge", "host", "none")
MODES = {
    "pid": ("--pid: invalid PID mode", r"(host|container:.+)?"),
    "uts": ("--uts: invalid UTS mode", r"(host)?"),
    "userns": ("--userns: invalid USER mode", r"(host)?"),
    "cgroupns": ("--cgroupns: invalid CGROUP mode", r"(host|private)?"),
}
MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}([0-9a-fA-F:]{6})?([0-9a-fA-F:]{36})?|[0-9a-fA-F]{2}(-[0-9a-fA-F]{2}){5}")


def create_request(values: Values, image: str, command: list[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """`image` and `command` are the arguments. ConsoleSize is left for who knows the terminal."""
    mac = values["mac-address"] or ""
    if mac and not MAC.fullmatch(mac):
        raise Bad(f"{mac} is not a valid mac address")
    swappiness = values.get("memory-swappiness", -1)
    if swappiness != -1 and not 0 <= swappiness <= 100:
        raise Bad(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    volumes, binds = _volumes(values["volume"])
    ports, bindings = published(values["publish"])
    for text in values["expose"]:
        ports.update(dict.fromkeys(exposed(text), {}))
    requests, devices = _devices(values["device"])
    request = _config(values, image, command, environ)
    if ports:
        request["ExposedPorts"] = ports
    request["Volumes"] = volumes
    for flag, (message, form) in MODES.items():
        if not re.fullmatch(form, values[flag] or ""):
            raise Bad(message)
    host = _host_config(values)
    host["Binds"] = binds or None
    host["PortBindings"] = bindings
    host["Devices"] = devices
    host["DeviceRequests"] = (values["gpus"] + requests) or None
    if values["rm"] and host["RestartPolicy"]["Name"] not in ("", "no"):
        raise Bad("conflicting options: cannot specify both --restart and --rm")
    request["HostConfig"] = host
    request["NetworkingConfig"] = {"EndpointsConfig": _endpoints(values, mac)}
    return request


def _volumes(texts: list[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What is mounted from somewhere is a bind, what is a path only becomes a volume without a name."""
    volumes: dict[str, dict[str, Any]] = {}
    binds: dict[str, None] = {}
    for text in texts:
        spec = bind(text)
        if ":" in spec:
            binds[spec] = None
        else:
            volumes[spec] = {}
    return volumes, list(binds)


def _devices(texts: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """`vendor.com/class=name` is asked of the node's CDI."""
    named = [text for text in texts if re.fullmatch(r"[A-Za-z][\w.-]*[A-Za-z0-9]/[A-Za-z][\w.-]*=[A-Za-z0-9][\w.:-]*", text)]
    devices = [found for text in texts if text not in named for found in device(text)]
    if not named:
        return [], devices
    return [{"Driver": "cdi", "Count": 0, "DeviceIDs": named, "Capabilities": None, "Options": None}], devices


def _config(values: Values, image: str, command: list[str], environ: Mapping[str, str]) -> dict[str, Any]:
    attached = values["attach"]
    stdin = bool(values["interactive"])
    attach_stdin = stdin or "stdin" in attached
    request: dict[str, Any] = {
        "Hostname": values.get("hostname", ""),
        "Domainname": values.get("domainname", ""),
        "User": values.get("user", ""),
        "AttachStdin": attach_stdin,
        "AttachStdout": not attached or "stdout" in attached,
        "AttachStderr": not attached or "stderr" in attached,
        "Tty": values["tty"],
        "OpenStdin": stdin,
        "StdinOnce": stdin and attach_stdin,
        "Env": _environment(values, environ) or None,
        "Cmd": command or None,
        "Image": image,
        "WorkingDir": values.get("workdir", ""),
        "Entrypoint": [values["entrypoint"]] if values.given("entrypoint") else None,
        "OnBuild": None,
        "Labels": key_values(_labels(values, environ)),
    }
    health = _health(values)
    if health:
        request["Healthcheck"] = health
    if values.given("stop-signal"):
        request["StopSignal"] = values["stop-signal"]
    if values.given("stop-timeout"):
        request["StopTimeout"] = values["stop-timeout"]
    return request


def _environment(values: Values, environ: Mapping[str, str]) -> list[str]:
    lines = [line for path in values["env-file"] for line in environment_file(path, environ)]
    return lines + with_values(values["env"], environ)


def _labels(values: Values, environ: Mapping[str, str]) -> list[str]:
    """A file of labels is read as one of variables is, but a bare name does not take its value from here."""
    return [line for path in values["label-file"] for line in environment_file(path, {})] + list(values["label"])


def _health(values: Values) -> dict[str, Any]:
    fields = {
        "Interval": values["health-interval"],
        "Timeout": values["health-timeout"],
        "Retries": values["health-retries"],
        "StartPeriod": values["health-start-period"],
        "StartInterval": values["health-start-interval"],
    }
    found: dict[str, Any] = {"Test": ["CMD-SHELL", values["health-cmd"]]} if values["health-cmd"] else {}
    found.update({key: value for key, value in fields.items() if value})
    if values["no-healthcheck"]:
        if found:
            raise Bad("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    for flag in ("interval", "timeout", "retries", "start-period", "start-interval"):
        if (values[f"health-{flag}"] or 0) < 0:
            raise Bad(f"--health-{flag} cannot be negative")
    return found


def _host_config(values: Values) -> dict[str, Any]:
    """Every field, in one place: it reads longer than it is."""
    driver, log_options = values["log-driver"] or "", key_values(values["log-opt"])
    if driver == "none" and log_options:
        raise Bad("invalid logging opts for driver none")
    policy = restart(values.get("restart", "no"))
    options = security(values["security-opt"])
    paths: list[str] | None = [] if "systempaths=unconfined" in options else None
    storage = values["storage-opt"]
    if not all("=" in text for text in storage):
        raise Bad("invalid storage option")
    networks = values["network"]
    host: dict[str, Any] = {
        "ContainerIDFile": values["cidfile"] or "",
        "LogConfig": {"Type": driver, "Config": log_options},
        "NetworkMode": networks[0]["Target"] if networks else "default",
        "RestartPolicy": policy,
        "AutoRemove": values["rm"],
        "VolumeDriver": values["volume-driver"] or "",
        "VolumesFrom": values["volumes-from"] or None,
        "ConsoleSize": [0, 0],
        "CapAdd": sorted(capabilities(values["cap-add"])) or None,
        "CapDrop": sorted(capabilities(values["cap-drop"])) or None,
        "CgroupnsMode": values["cgroupns"] or "",
        "Dns": values["dns"],
        "DnsOptions": values["dns-option"],
        "DnsSearch": values["dns-search"],
        "ExtraHosts": values["add-host"] or None,
        "GroupAdd": values["group-add"] or None,
        "IpcMode": values["ipc"] or "",
        "Cgroup": "",
        "Links": values["link"] or None,
        "OomScoreAdj": values["oom-score-adj"] or 0,
        "PidMode": values["pid"] or "",
        "Privileged": values["privileged"],
        "PublishAllPorts": values["publish-all"],
        "ReadonlyRootfs": values["read-only"],
        "SecurityOpt": [text for text in options if text != "systempaths=unconfined"] if options else None,
        "UTSMode": values["uts"] or "",
        "UsernsMode": values["userns"] or "",
        "ShmSize": values["shm-size"] or 0,
        "Isolation": values["isolation"] or "",
        "MaskedPaths": paths,
        "ReadonlyPaths": paths,
        **resources(values),
        "BlkioWeightDevice": values["blkio-weight-device"],
        "BlkioDeviceReadBps": values["device-read-bps"],
        "BlkioDeviceWriteBps": values["device-write-bps"],
        "BlkioDeviceReadIOps": values["device-read-iops"],
        "BlkioDeviceWriteIOps": values["device-write-iops"],
        "MemorySwappiness": values.get("memory-swappiness", -1),
        "OomKillDisable": values["oom-kill-disable"],
        "CgroupParent": values["cgroup-parent"] or "",
        "DeviceCgroupRules": values["device-cgroup-rule"] or None,
        "Ulimits": values["ulimit"],
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
    }
    given = {
        "Annotations": key_values(values["annotation"]),
        "StorageOpt": key_values(storage),
        "Tmpfs": {path: text for path, _, text in (text.partition(":") for text in values["tmpfs"])},
        "Sysctls": key_values(values["sysctl"]),
        "Runtime": values["runtime"],
        "Mounts": values["mount"],
        "KernelMemory": values["kernel-memory"],
    }
    host.update({key: value for key, value in given.items() if value})
    if values.given("init"):
        host["Init"] = values["init"]
    return host


def resources(values: Values) -> dict[str, Any]:
    """What `run` and `update` both can set."""
    return {
        "CpuShares": values["cpu-shares"] or 0,
        "Memory": values["memory"] or 0,
        "NanoCpus": values["cpus"] or 0,
        "BlkioWeight": values["blkio-weight"] or 0,
        "CpuPeriod": values["cpu-period"] or 0,
        "CpuQuota": values["cpu-quota"] or 0,
        "CpuRealtimePeriod": values["cpu-rt-period"] or 0,
        "CpuRealtimeRuntime": values["cpu-rt-runtime"] or 0,
        "CpusetCpus": values["cpuset-cpus"] or "",
        "CpusetMems": values["cpuset-mems"] or "",
        "MemoryReservation": values["memory-reservation"] or 0,
        "MemorySwap": values["memory-swap"] or 0,
        "PidsLimit": values["pids-limit"] or 0,
    }


# networks

EMPTY: dict[str, Any] = {
    "IPAMConfig": None,
    "Links": None,
    "Aliases": None,
    "MacAddress": "",
    "DriverOpts": None,
    "GwPriority": 0,
    "NetworkID": "",
    "EndpointID": "",
    "Gateway": "",
    "IPAddress": "",
    "IPPrefixLen": 0,
    "IPv6Gateway": "",
    "GlobalIPv6Address": "",
    "GlobalIPv6PrefixLen": 0,
    "DNSNames": None,
}

OLD_FLAGS = (
    ("network-alias", "Aliases", "--network-alias and per-network alias"),
    ("ip", "IPv4Address", "--ip and per-network IPv4 address"),
    ("ip6", "IPv6Address", "--ip6 and per-network IPv6 address"),
    ("link-local-ip", "LinkLocalIPs", "--link-local-ip and per-network link-local IP addresses"),
    ("mac-address", "MacAddress", "--mac-address and per-network MAC address"),
)
"""Flags from before a container could have several networks: they are about the first."""


def _endpoints(values: Values, mac: str) -> dict[str, dict[str, Any]]:
    networks = [dict(network) for network in values["network"]] or [{"Target": "default"}]
    first = networks[0]
    for flag, field, both in OLD_FLAGS:
        if not values[flag]:
            continue
        if first.get(field):
            raise Bad(f"conflicting options: cannot specify both {both}")
        first[field] = values[flag]
    if values["link"] and user_defined(first["Target"]):
        first["Links"] = values["link"]
    kinds = set()
    endpoints: dict[str, dict[str, Any]] = {}
    for network in networks:
        name = network["Target"]
        kinds.add(user_defined(name))
        endpoint = _endpoint(network)
        if name in endpoints:
            raise Bad(f'network "{name}" is specified multiple times')
        if endpoint == EMPTY and len(networks) == 1 and values["network"]:
            continue
        endpoints[name] = endpoint
    if len(kinds) > 1:
        raise Bad("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
    return endpoints


def user_defined(name: str) -> bool:
    return name not in BUILT_IN and not name.startswith("container:")


def _endpoint(network: dict[str, Any]) -> dict[str, Any]:
    if not network["Target"].strip():
        raise Bad("no name set for network")
    if network.get("Aliases") and not user_defined(network["Target"]):
        raise Bad("network-scoped aliases are only supported for user-defined networks")
    ipam = {key: network[key] for key in ("IPv4Address", "IPv6Address", "LinkLocalIPs") if network.get(key)}
    fields = {key: network[key] for key in ("Links", "Aliases", "MacAddress", "DriverOpts", "GwPriority") if network.get(key)}
    return {**EMPTY, **fields, "IPAMConfig": ipam or None}
