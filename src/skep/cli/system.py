"""`skep info`, `skep version`, `skep events`."""

from __future__ import annotations

import json
import time

from skep.cli.flags import Command, Flag
from skep.cli.shell import Failed, message_of
from skep.cli.table import FORMAT_INSPECT
from skep.cli.words import Bad, human_duration, human_size, parse_duration, parse_time
from skep.client import calls
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

VERSION = "0.1.0"
API_VERSION = "1.50"


def formatted(shell: Shell, data: Any, form: str) -> int:
    from skep.cli.gotemplate import Template, to_json

    shell.print(to_json(data) if form == "json" else Template(form).render(data))
    return 0


# version


def version(shell: Shell, values: Values, _: list[str]) -> int:
    import os

    system = os.uname()
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(system.machine, system.machine)
    client = {"Version": VERSION, "ApiVersion": API_VERSION, "Os": system.sysname.lower(), "Arch": arch}
    server, problem = None, ""
    try:
        server = shell.call(calls.version())
    except SkepError as error:
        problem = message_of(error)
    if values["format"]:
        formatted(shell, {"Client": client, "Server": server}, values["format"])
    else:
        shell.print(
            f"Client: skep\n Version:           {VERSION}\n API version:       {API_VERSION}\n OS/Arch:           {client['Os']}/{arch}"
        )
        if server is not None:
            shell.print("\n" + "\n".join(_server_lines(server)))
    if problem:
        raise Failed(problem)
    return 0


def _server_lines(server: dict[str, Any]) -> Iterable[str]:
    name = (server.get("Platform") or {}).get("Name", "")
    yield f"Server: {name}".rstrip()
    for component in server.get("Components") or ():
        details = component.get("Details") or {}
        yield f" {component['Name']}:"
        yield f"  {'Version:':<17}{component.get('Version', '')}"
        if component["Name"] != "Engine":
            for key, value in sorted(details.items()):
                yield f"  {key + ':':<17}{value}"
            continue
        yield f"  {'API version:':<17}{details.get('ApiVersion', '')} (minimum version {details.get('MinAPIVersion', '')})"
        for title, key in (("Go version", "GoVersion"), ("Git commit", "GitCommit")):
            if details.get(key):
                yield f"  {title + ':':<17}{details[key]}"
        if details.get("BuildTime"):
            yield f"  {'Built:':<17}{built(details['BuildTime'])}"
        yield f"  {'OS/Arch:':<17}{details.get('Os', '')}/{details.get('Arch', '')}"
        yield f"  {'Experimental:':<17}{details.get('Experimental', 'false')}"


def built(text: str) -> str:
    """Go's ANSIC form of an RFC 3339 time."""
    seconds = parse_time(text) // 1_000_000_000
    return time.strftime("%a %b %e %H:%M:%S %Y", time.gmtime(seconds)).replace("  ", "  ") if seconds else text


# info


def info(shell: Shell, values: Values, _: list[str]) -> int:
    data = shell.call(calls.info())
    if values["format"]:
        return formatted(shell, data, values["format"])
    lines = [f"Client: skep\n Version:    {VERSION}\n", "Server:", *_server_info(data)]
    shell.print("\n".join(lines) + "\n")
    for warning in data.get("Warnings") or ():
        shell.warn(warning)
    return 0


def _server_info(data: dict[str, Any]) -> Iterable[str]:
    yield f" Containers: {data.get('Containers', 0)}"
    for state in ("Running", "Paused", "Stopped"):
        yield f"  {state}: {data.get(f'Containers{state}', 0)}"
    yield f" Images: {data.get('Images', 0)}"
    if data.get("ServerVersion"):
        yield f" Server Version: {data['ServerVersion']}"
    yield f" Storage Driver: {data.get('Driver', '')}"
    for key, value in data.get("DriverStatus") or ():
        yield f"  {key}: {value}"
    for title, key in (("Logging Driver", "LoggingDriver"), ("Cgroup Driver", "CgroupDriver"), ("Cgroup Version", "CgroupVersion")):
        if data.get(key):
            yield f" {title}: {data[key]}"
    plugins = data.get("Plugins") or {}
    yield " Plugins:"
    for kind in ("Volume", "Network", "Authorization", "Log"):
        if plugins.get(kind):
            yield f"  {kind}: {' '.join(plugins[kind])}"
    if data.get("CDISpecDirs"):
        yield " CDI spec directories:"
        yield from (f"  {path}" for path in data["CDISpecDirs"])
    yield from _swarm_info(data.get("Swarm") or {})
    if data.get("Runtimes"):
        yield f" Runtimes: {' '.join(sorted(data['Runtimes']))}"
        yield f" Default Runtime: {data.get('DefaultRuntime', '')}"
    if data.get("InitBinary"):
        yield f" Init Binary: {data['InitBinary']}"
        for title, key in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")):
            yield f" {title} version: {(data.get(key) or {}).get('ID', '')}"
    yield from _security(data.get("SecurityOptions") or ())
    for title, key in (("Kernel Version", "KernelVersion"), ("Operating System", "OperatingSystem"), ("OSType", "OSType")):
        yield f" {title}: {data.get(key, '')}"
    yield f" Architecture: {data.get('Architecture', '')}"
    yield f" CPUs: {data.get('NCPU', 0)}"
    yield f" Total Memory: {human_size(data.get('MemTotal', 0))}"
    yield f" Name: {data.get('Name', '')}"
    yield f" ID: {data.get('ID', '')}"
    yield f" Docker Root Dir: {data.get('DockerRootDir', '')}"
    yield f" Debug Mode: {str(bool(data.get('Debug'))).lower()}"
    yield from _rest_of_info(data)


def _security(options: Iterable[str]) -> Iterable[str]:
    """`name=seccomp,profile=builtin`."""
    shown = False
    for option in options:
        pairs = [part.partition("=") for part in option.split(",")]
        name = next((value for key, _, value in pairs if key == "name"), option)
        if not shown:
            yield " Security Options:"
            shown = True
        yield f"  {name}"
        for key, _, value in pairs:
            if key != "name" and value:
                yield f"   {key.title()}: {value}"


def _rest_of_info(data: dict[str, Any]) -> Iterable[str]:
    for title, key in (("HTTP Proxy", "HttpProxy"), ("HTTPS Proxy", "HttpsProxy"), ("No Proxy", "NoProxy")):
        if data.get(key):
            yield f" {title}: {data[key]}"
    if data.get("Labels"):
        yield " Labels:"
        yield from (f"  {label}" for label in data["Labels"])
    yield f" Experimental: {str(bool(data.get('ExperimentalBuild'))).lower()}"
    registry = data.get("RegistryConfig") or {}
    insecure = [name for name, index in sorted((registry.get("IndexConfigs") or {}).items()) if not index.get("Secure")]
    ranges = registry.get("InsecureRegistryCIDRs") or []
    if insecure or ranges:
        yield " Insecure Registries:"
        yield from (f"  {name}" for name in [*insecure, *ranges])
    if registry.get("Mirrors"):
        yield " Registry Mirrors:"
        yield from (f"  {mirror}" for mirror in registry["Mirrors"])
    yield f" Live Restore Enabled: {str(bool(data.get('LiveRestoreEnabled'))).lower()}"


def _swarm_info(swarm: dict[str, Any]) -> Iterable[str]:
    state = swarm.get("LocalNodeState", "inactive")
    yield f" Swarm: {state}"
    if state in ("inactive", "locked"):
        return
    yield f"  NodeID: {swarm.get('NodeID', '')}"
    if swarm.get("Error"):
        yield f"  Error: {swarm['Error']}"
    yield f"  Is Manager: {str(bool(swarm.get('ControlAvailable'))).lower()}"
    cluster = swarm.get("Cluster")
    if cluster and swarm.get("ControlAvailable") and not swarm.get("Error"):
        yield from _cluster_info(swarm, cluster)
    yield f"  Node Address: {swarm.get('NodeAddr', '')}"
    managers = sorted(manager["Addr"] for manager in swarm.get("RemoteManagers") or ())
    if managers:
        yield "  Manager Addresses:"
        yield from (f"   {address}" for address in managers)


def _cluster_info(swarm: dict[str, Any], cluster: dict[str, Any]) -> Iterable[str]:
    spec = cluster["Spec"]
    yield f"  ClusterID: {cluster['ID']}"
    yield f"  Managers: {swarm.get('Managers', 0)}"
    yield f"  Nodes: {swarm.get('Nodes', 0)}"
    if cluster.get("DefaultAddrPool"):
        yield f"  Default Address Pool: {'  '.join(cluster['DefaultAddrPool'])}"
        yield f"  SubnetSize: {cluster.get('SubnetSize', 0)}"
    if cluster.get("DataPathPort"):
        yield f"  Data Path Port: {cluster['DataPathPort']}"
    yield "  Orchestration:"
    yield f"   Task History Retention Limit: {(spec.get('Orchestration') or {}).get('TaskHistoryRetentionLimit', 0)}"
    raft = spec.get("Raft") or {}
    yield "  Raft:"
    yield f"   Snapshot Interval: {raft.get('SnapshotInterval', 0)}"
    if raft.get("KeepOldSnapshots") is not None:
        yield f"   Number of Old Snapshots to Retain: {raft['KeepOldSnapshots']}"
    yield f"   Heartbeat Tick: {raft.get('HeartbeatTick', 0)}"
    yield f"   Election Tick: {raft.get('ElectionTick', 0)}"
    yield "  Dispatcher:"
    yield f"   Heartbeat Period: {human_duration((spec.get('Dispatcher') or {}).get('HeartbeatPeriod', 0))}"
    authority = spec.get("CAConfig") or {}
    yield "  CA Configuration:"
    yield f"   Expiry Duration: {human_duration(authority.get('NodeCertExpiry', 0))}"
    yield f"   Force Rotate: {authority.get('ForceRotate', 0)}"
    if authority.get("SigningCACert"):
        yield f"   Signing CA Certificate: \n{authority['SigningCACert'].strip()}"
    if authority.get("ExternalCAs"):
        yield "   External CAs:"
        yield from (f"     {entry['Protocol']}: {entry['URL']}" for entry in authority["ExternalCAs"])
    yield f"  Autolock Managers: {str(bool((spec.get('EncryptionConfig') or {}).get('AutoLockManagers'))).lower()}"
    yield f"  Root Rotation In Progress: {str(bool(cluster.get('RootRotationInProgress'))).lower()}"


# events


def timestamp(text: str, now: int) -> str:
    """A time as the API wants it: `20m` ago as Unix seconds, an RFC 3339 time with nanoseconds, Unix time as it is."""
    if not text:
        return ""
    try:
        if text != "0":
            return str((now - parse_duration(text)) // 1_000_000_000)
    except Bad:
        pass
    whole = text if len(text) > 10 else f"{text}T00:00:00"
    whole += {13: ":00:00", 16: ":00"}.get(len(whole), "")
    then = parse_time(whole)
    if then:
        if "Z" not in whole and "+" not in whole and whole.count("-") < 3:
            then -= time.localtime(then // 1_000_000_000).tm_gmtoff * 1_000_000_000
        return f"{then // 1_000_000_000}.{then % 1_000_000_000:09d}"
    if text.replace(".", "", 1).isdigit():
        return text
    raise Failed(f'failed to parse value as time or duration: "{text}"')


def events(shell: Shell, values: Values, _: list[str]) -> int:
    since, until = (timestamp(values[name] or "", shell.now()) for name in ("since", "until"))
    form = values["format"] or ""
    template = None
    if form and form != "json":
        from skep.cli.gotemplate import Template

        template = Template(form)
    for line in shell.open(calls.events(since, until, values.filters())).lines():
        if not line.strip():
            continue
        event = json.loads(line)
        if form == "json":
            shell.print(json.dumps(event, separators=(",", ":"), ensure_ascii=False))
        else:
            shell.print(template.render(event) if template else event_line(event))
        shell.out.flush()
    return 0


def event_line(event: dict[str, Any]) -> str:
    nano = event.get("timeNano") or event.get("time", 0) * 1_000_000_000
    local = time.localtime(nano // 1_000_000_000)
    zone = time.strftime("%z", local)
    stamp = (
        time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{nano % 1_000_000_000:09d}" + ("Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}")
    )
    actor = event.get("Actor") or {}
    attributes = ", ".join(f"{key}={value}" for key, value in sorted((actor.get("Attributes") or {}).items()))
    return f"{stamp} {event['Type']} {event['Action']} {actor.get('ID', '')}" + (f" ({attributes})" if attributes else "")


COMMANDS = {
    "system info": Command(
        "system info",
        "[OPTIONS]",
        "Display system-wide information",
        info,
        (Flag("format", "string", FORMAT_INSPECT, "f"),),
        aliases=("system info", "info"),
    ),
    "version": Command(
        "version",
        "[OPTIONS]",
        "Show the version information of skep and its daemon",
        version,
        (Flag("format", "string", FORMAT_INSPECT, "f"),),
    ),
    "system events": Command(
        "system events",
        "[OPTIONS]",
        "Get real time events from the server",
        events,
        (
            Flag("filter", "filter", "Filter output based on conditions provided", "f"),
            Flag("format", "string", FORMAT_INSPECT),
            Flag("since", "string", "Show all events created since timestamp"),
            Flag("until", "string", "Stream events until this timestamp"),
        ),
        aliases=("system events", "events"),
    ),
}
