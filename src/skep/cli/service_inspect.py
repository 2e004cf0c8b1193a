"""`skep service inspect`, in full or for people (`--pretty`)."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.shell import Failed
from skep.cli.table import FORMAT_INSPECT
from skep.cli.words import ago, go_duration, human_size
from skep.client import calls
from skep.client.unix import ApiError
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

    Fields = dict[str, Any]


def inspect(shell: Shell, values: Values, names: list[str]) -> int:
    form = values["format"] or ""
    if values["pretty"] and form:
        raise Failed("--format is incompatible with human friendly format")

    def get(name: str) -> Any:
        return shell.call(calls.service_inspect(name, defaults=True))

    if not values["pretty"]:
        from skep.cli.inspect import show

        return show(shell, names, form, get, lambda name: f"Error: no such service: {name}")
    networks: dict[str, str] = {}
    services = []
    for name in names:
        try:
            services.append(get(name))
        except ApiError as error:
            if error.status != 404:
                raise
            raise Failed(f"Error: no such service: {name}") from None
        _name_networks(shell, services[-1]["Spec"], networks)
    for service in services:
        shell.print("\n" + "\n".join(pretty(service, networks, shell.now())) + "\n")
    return 0


def _name_networks(shell: Shell, spec: Fields, names: dict[str, str]) -> None:
    """Names are shown, ids are stored. What is gone keeps its id."""
    for network in spec["TaskTemplate"].get("Networks") or spec.get("Networks") or ():
        id = network["Target"]
        try:
            names[id] = names.get(id) or shell.call(calls.network_inspect(id, "swarm"))["Name"]
        except SkepError:
            names[id] = id


def pretty(service: Fields, networks: dict[str, str], now: int) -> Iterator[str]:
    """Docker's template, line for line."""
    spec, template = service["Spec"], service["Spec"]["TaskTemplate"]
    container = template.get("ContainerSpec") or {}
    yield f"ID:\t\t{service['ID']}"
    yield f"Name:\t\t{spec['Name']}"
    if spec.get("Labels"):
        yield "Labels:"
        yield from (f" {key}={value}" if value else f" {key}" for key, value in sorted(spec["Labels"].items()))
    yield from _mode(spec["Mode"])
    update = service.get("UpdateStatus") or {}
    if update.get("State"):
        yield "UpdateStatus:"
        yield f" State:\t\t{update['State']}"
        if update.get("StartedAt"):
            yield f" Started:\t{ago(now, update['StartedAt']).lower()}"
        if update.get("CompletedAt"):
            yield f" Completed:\t{ago(now, update['CompletedAt']).lower()}"
        yield f" Message:\t{update.get('Message', '')}"
    yield "Placement:"
    placement = template.get("Placement") or {}
    if placement.get("Constraints"):
        yield f" Constraints:\t[{' '.join(placement['Constraints'])}]"
    if placement.get("Preferences"):
        spread = " ".join(f"spread={p['Spread']['SpreadDescriptor']}" for p in placement["Preferences"] if p.get("Spread"))
        yield f" Preferences:   [{spread}]"
    if placement.get("MaxReplicas"):
        yield f" Max Replicas Per Node:   {placement['MaxReplicas']}"
    yield from _rollout("UpdateConfig", "Update", spec.get("UpdateConfig"))
    yield from _rollout("RollbackConfig", "Rollback", spec.get("RollbackConfig"))
    yield from _container(container)
    yield from _references(container)
    yield from _log_driver(template.get("LogDriver"))
    yield from _resources(template.get("Resources"))
    attached = template.get("Networks") or spec.get("Networks") or ()
    if attached:
        yield "Networks: " + "".join(f"{networks.get(n['Target'], n['Target'])} " for n in attached)
    yield from _endpoint(spec.get("EndpointSpec"), (service.get("Endpoint") or {}).get("Ports"))
    yield from _health(container.get("Healthcheck"))


def _mode(mode: Fields) -> Iterator[str]:
    if "Global" in mode:
        yield "Service Mode:\tGlobal"
    elif "Replicated" in mode:
        yield "Service Mode:\tReplicated"
        yield f" Replicas:\t{mode['Replicated'].get('Replicas', 0)}"
    elif "ReplicatedJob" in mode:
        yield "Service Mode:\tReplicatedJob"
        yield f" Max Concurrent:\t{mode['ReplicatedJob'].get('MaxConcurrent', 0)}"
        yield f" Total Completions:\t{mode['ReplicatedJob'].get('TotalCompletions', 0)}"
    else:
        yield "Service Mode:\tGlobalJob"


def _rollout(title: str, word: str, config: Fields | None) -> Iterator[str]:
    if config is None:
        return
    yield f"{title}:"
    yield f" Parallelism:\t{config.get('Parallelism', 0)}"
    if config.get("Delay"):
        yield f" Delay:\t\t{go_duration(config['Delay'])}"
    yield f" On failure:\t{config.get('FailureAction', '')}"
    if config.get("Monitor"):
        yield f" Monitoring Period: {go_duration(config['Monitor'])}"
    yield f" Max failure ratio: {config.get('MaxFailureRatio', 0):g}"
    yield f" {word} order:{'      ' if word == 'Update' else '    '}{config.get('Order', '')}"


def _container(container: Fields) -> Iterator[str]:
    yield "ContainerSpec:"
    yield f" Image:\t\t{container.get('Image', '')}"
    for title, field in (("Args", "Args"), ("Env", "Env")):
        if container.get(field):
            yield f" {title}:\t\t{''.join(f'{word} ' for word in container[field])}"
    if container.get("Dir"):
        yield f" Dir:\t\t{container['Dir']}"
    if container.get("Init") is not None:
        yield f" Init:\t\t{str(container['Init']).lower()}"
    if container.get("User"):
        yield f" User: {container['User']}"
    if container.get("CapabilityAdd") or container.get("CapabilityDrop"):
        yield "Capabilities:"
        if container.get("CapabilityAdd"):
            yield f" Add: {', '.join(container['CapabilityAdd'])}"
        if container.get("CapabilityDrop"):
            yield f" Drop: {', '.join(container['CapabilityDrop'])}"
    if container.get("Sysctls"):
        yield "SysCtls:"
        yield from (f" {key}: {value}" for key, value in sorted(container["Sysctls"].items()))
    if container.get("Ulimits"):
        yield "Ulimits:"
        yield from (f" {limit['Name']}: {limit['Soft']}:{limit['Hard']}" for limit in container["Ulimits"])


def _references(container: Fields) -> Iterator[str]:
    if container.get("Mounts"):
        yield "Mounts:"
        for mount in container["Mounts"]:
            yield f" Target:\t{mount.get('Target', '')}"
            yield f"  Source:\t{mount.get('Source', '')}"
            yield f"  ReadOnly:\t{str(bool(mount.get('ReadOnly'))).lower()}"
            yield f"  Type:\t\t{mount.get('Type', '')}"
    for kind in ("Config", "Secret"):
        if container.get(f"{kind}s"):
            yield f"{kind}s:"
            for reference in container[f"{kind}s"]:
                if reference.get("File"):
                    yield f" Target:\t{reference['File']['Name']}"
                    yield f"  Source:\t{reference[f'{kind}Name']}"


def _log_driver(driver: Fields | None) -> Iterator[str]:
    if not driver:
        return
    yield "Log Driver:"
    if driver.get("Name"):
        yield f" Name:\t\t{driver['Name']}"
    if driver.get("Options"):
        yield " LogOpts:"
        yield from (f"  {key}:       {value}" for key, value in sorted(driver["Options"].items()))
    yield ""


def _resources(resources: Fields | None) -> Iterator[str]:
    if resources is None:
        return
    yield "Resources:"
    for title in ("Reservations", "Limits"):
        found = resources.get(title) or {}
        if not (found.get("NanoCPUs") or found.get("MemoryBytes") or found.get("Pids")):
            continue
        yield f" {title}:"
        if found.get("NanoCPUs"):
            yield f"  CPU:\t\t{found['NanoCPUs'] / 1e9:g}"
        if found.get("MemoryBytes"):
            yield f"  Memory:\t{human_size(found['MemoryBytes'])}"
        if found.get("Pids"):
            yield f"  PIDs:\t\t{found['Pids']}"


def _endpoint(endpoint: Fields | None, ports: list[Fields] | None) -> Iterator[str]:
    yield f"Endpoint Mode:\t{(endpoint or {}).get('Mode', '')}"
    if ports:
        yield "Ports:"
        for port in ports:
            yield f" PublishedPort = {port.get('PublishedPort', 0)}"
            yield f"  Protocol = {port.get('Protocol', '')}"
            yield f"  TargetPort = {port.get('TargetPort', 0)}"
            yield f"  PublishMode = {port.get('PublishMode', '')}{' ' if port is ports[-1] else ''}"


def _health(check: Fields | None) -> Iterator[str]:
    if not check:
        return
    yield " Healthcheck:"
    yield f"  Interval = {go_duration(check.get('Interval', 0))}"
    yield f"  Retries = {check.get('Retries', 0)}"
    yield f"  StartPeriod =\t{go_duration(check.get('StartPeriod', 0))}"
    yield f"  Timeout =\t{go_duration(check.get('Timeout', 0))}"
    if check.get("Test"):
        yield "  Tests:"
        *first, last = check["Test"]
        yield from (f"\t Test = {word}" for word in first)
        yield f"\t Test = {last} "


COMMANDS = {
    "service inspect": Command(
        "service inspect",
        "[OPTIONS] SERVICE [SERVICE...]",
        "Display detailed information on one or more services",
        inspect,
        (
            Flag("format", "string", FORMAT_INSPECT, "f"),
            Flag("pretty", "bool", "Print the information in a human friendly format"),
        ),
        least=1,
        most=None,
    ),
}
