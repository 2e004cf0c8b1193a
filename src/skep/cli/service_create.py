"""`skep service create`: from flags to a service spec, field for field as Docker's command line sends it."""

from __future__ import annotations

from skep.cli import options
from skep.cli.flags import Command
from skep.cli.registry import credentials, resolve, tagged
from skep.cli.service_flags import CREATE
from skep.cli.shell import Failed
from skep.cli.words import SECOND, Bad
from skep.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell


def create(shell: Shell, values: Values, words: list[str]) -> int:
    try:
        spec = spec_of(values, words[0], words[1:], shell.environ)
    except Bad as error:
        raise Failed(str(error)) from None
    template = spec["TaskTemplate"]
    container = template["ContainerSpec"]
    networks = [{**network, "Target": network_id(shell, network["Target"])} for network in values["network"]]
    if networks:
        template["Networks"] = sorted(networks, key=lambda network: str(network["Target"]))
    if values["secret"]:
        container["Secrets"] = with_ids(shell, "Secret", values["secret"])
    configs = values["config"]
    privileges = (container.get("Privileges") or {}).get("CredentialSpec") or {}
    if configs or privileges.get("Config"):
        set_configs(shell, container, configs)
    auth = credentials(shell, container["Image"]) if values["with-registry-auth"] else None
    container["Image"] = tagged(container["Image"])
    unresolved = [] if values["no-resolve-image"] else resolve(shell, spec, auth)
    answer = shell.call(calls.service_create(spec, auth))
    for warning in (*(answer.get("Warnings") or ()), *unresolved):
        shell.warn(warning)
    shell.print(answer["ID"])
    return finish(shell, values, answer["ID"])


def finish(shell: Shell, values: Values, id: str) -> int:
    """Wait until it runs, unless told not to."""
    if not values.get("detach"):
        from skep.cli.progress import wait

        wait(shell, id, bool(values.get("quiet")))
    return 0


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty, as Go's omitempty has it."""
    return {key: value for key, value in fields.items() if value not in (None, "", 0, False, [], {})}


def spec_of(values: Values, image: str, args: list[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Raises Failed, Bad."""
    template: dict[str, Any] = {
        "ContainerSpec": container_of(values, image, args, environ),
        "Resources": resources_of(values),
        "Placement": filled(
            {
                "Constraints": values["constraint"],
                "Preferences": values["placement-pref"],
                "MaxReplicas": values["replicas-max-per-node"],
            }
        ),
        "ForceUpdate": 0,
    }
    policy = restart_policy(values)
    if policy:
        template["RestartPolicy"] = policy
    if values["log-driver"]:
        template["LogDriver"] = filled({"Name": values["log-driver"], "Options": options.key_values(values["log-opt"])})
    spec: dict[str, Any] = {
        "Name": values.get("name", ""),
        "Labels": options.key_values(values["label"]),
        "TaskTemplate": template,
        "Mode": mode_of(values),
        "EndpointSpec": filled(
            {"Mode": values.get("endpoint-mode", "vip").lower(), "Ports": [p for many in values["publish"] for p in many]}
        ),
    }
    for flag, field in (("update", "UpdateConfig"), ("rollback", "RollbackConfig")):
        config = rollout(values, flag)
        if config:
            if "Job" in next(iter(spec["Mode"])):
                raise Failed("update and rollback configuration is not supported for jobs")
            spec[field] = config
    return {key: value for key, value in spec.items() if key != "Name" or value}


def container_of(values: Values, image: str, args: list[str], environ: Mapping[str, str]) -> dict[str, Any]:
    environment = [line for path in values["env-file"] for line in options.environment_file(path, environ)]
    environment += options.with_values(values["env"], environ)
    add, drop = options.capabilities(values["cap-add"]), options.capabilities(values["cap-drop"])
    add, drop = ({"ALL"} if "ALL" in caps else caps for caps in (add, drop))
    dns = {"Nameservers": values["dns"], "Search": values["dns-search"], "Options": values["dns-option"]}
    container: dict[str, Any] = {"Image": image}
    container |= filled(
        {
            "Labels": options.key_values(values["container-label"]),
            "Command": values["entrypoint"],
            "Args": args,
            "Hostname": values["hostname"],
            "Env": environment,
            "Dir": values["workdir"],
            "User": values["user"],
            "Groups": values["group"],
            "StopSignal": values["stop-signal"],
            "TTY": values["tty"],
            "ReadOnly": values["read-only"],
            "Mounts": values["mount"],
            "Healthcheck": healthcheck(values),
            "Hosts": values["host"],
            "Isolation": values["isolation"],
            "Sysctls": options.key_values(values["sysctl"]),
            "CapabilityAdd": sorted(add),
            "CapabilityDrop": sorted(drop - add),
            "Ulimits": ulimits(values["ulimit"]),
            "OomScoreAdj": values["oom-score-adj"],
        }
    )
    container["Init"] = values["init"]
    container["DNSConfig"] = filled(dns)
    if values.given("stop-grace-period"):
        container["StopGracePeriod"] = values["stop-grace-period"]
    if values["credential-spec"]:
        container["Privileges"] = {"CredentialSpec": values["credential-spec"], "NoNewPrivileges": False, "SELinuxContext": None}
    return container


def ulimits(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One of a kind: the last given."""
    return [limit for _, limit in sorted({limit["Name"]: limit for limit in given}.items())]


def resources_of(values: Values) -> dict[str, Any]:
    return {
        "Limits": filled({"NanoCPUs": values["limit-cpu"], "MemoryBytes": values["limit-memory"], "Pids": values["limit-pids"]}),
        "Reservations": filled(
            {
                "NanoCPUs": values["reserve-cpu"],
                "MemoryBytes": values["reserve-memory"],
                "GenericResources": options.generic_resources(values["generic-resource"]),
            }
        ),
    }


HEALTH = ("health-cmd", "health-interval", "health-timeout", "health-start-period", "health-start-interval", "health-retries")


def healthcheck(values: Values) -> dict[str, Any] | None:
    given = any(values.given(flag) for flag in HEALTH)
    if values["no-healthcheck"]:
        if given:
            raise Failed("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not given:
        return None
    return filled(
        {
            "Test": ["CMD-SHELL", values["health-cmd"]] if values["health-cmd"] else None,
            "Interval": values["health-interval"],
            "Timeout": values["health-timeout"],
            "Retries": values["health-retries"],
            "StartPeriod": values["health-start-period"],
            "StartInterval": values["health-start-interval"],
        }
    )


RESTART = {"restart-condition": "Condition", "restart-delay": "Delay", "restart-max-attempts": "MaxAttempts", "restart-window": "Window"}


def restart_policy(values: Values) -> dict[str, Any] | None:
    """None of the flags: nothing is sent, and the daemon's defaults hold."""
    if not values.given(*RESTART):
        return None
    policy = {"Condition": "any", "Delay": 5 * SECOND, "MaxAttempts": 0}
    return policy | {field: values[flag] for flag, field in RESTART.items() if values.given(flag)}


ROLLOUT = {
    "parallelism": "Parallelism",
    "delay": "Delay",
    "monitor": "Monitor",
    "failure-action": "FailureAction",
    "max-failure-ratio": "MaxFailureRatio",
    "order": "Order",
}


def default_rollout() -> dict[str, Any]:
    return {"Parallelism": 1, "FailureAction": "pause", "Monitor": 5 * SECOND, "MaxFailureRatio": 0, "Order": "stop-first"}


def rollout(values: Values, kind: str) -> dict[str, Any] | None:
    """`kind` is update or rollback."""
    given = {field: values[f"{kind}-{flag}"] for flag, field in ROLLOUT.items() if values.given(f"{kind}-{flag}")}
    if not given:
        return None
    config = default_rollout() | given
    return {key: value for key, value in config.items() if key != "Delay" or value}


def mode_of(values: Values) -> dict[str, Any]:
    mode, replicas, concurrent = values.get("mode", "replicated"), values["replicas"], values["max-concurrent"]
    if mode in ("global", "global-job"):
        if replicas is not None:
            raise Failed("replicas can only be used with replicated or replicated-job mode")
        if values["replicas-max-per-node"]:
            raise Failed("replicas-max-per-node can only be used with replicated or replicated-job mode")
    if mode != "replicated-job" and concurrent is not None:
        raise Failed("max-concurrent can only be used with replicated-job mode")
    match mode:
        case "global":
            return {"Global": {}}
        case "global-job":
            return {"GlobalJob": {}}
        case "replicated":
            return {"Replicated": {} if replicas is None else {"Replicas": replicas}}
        case "replicated-job":
            job = {"MaxConcurrent": replicas if concurrent is None else concurrent, "TotalCompletions": replicas}
            return {"ReplicatedJob": {key: value for key, value in job.items() if value is not None}}
    raise Failed(f"Unknown mode: {mode}, only replicated and global supported")


# what has a name here and an id there


def network_id(shell: Shell, name: str) -> str:
    return str(shell.call(calls.network_inspect(name, "swarm"))["Id"])


def with_ids(shell: Shell, kind: str, references: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`kind` is Secret or Config."""
    targets: set[str] = set()
    for reference in references:
        target = (reference.get("File") or {}).get("Name", "")
        if target and target in targets:
            raise Failed(f"duplicate {kind.lower()} target for {reference[f'{kind}Name']} not allowed")
        targets.add(target)
    names = [reference[f"{kind}Name"] for reference in references]
    listing = calls.secret_list if kind == "Secret" else calls.config_list
    found = {object["Spec"]["Name"]: object["ID"] for object in shell.call(listing({"name": names}))}
    for name in names:
        if name not in found:
            raise Failed(f"{kind.lower()} not found: {name}")
    return [{**reference, f"{kind}ID": found[reference[f"{kind}Name"]]} for reference in references]


def set_configs(shell: Shell, container: dict[str, Any], configs: list[dict[str, Any]]) -> None:
    """The configs, and the one a credential spec names: it is referred to by its id."""
    spec = (container.get("Privileges") or {}).get("CredentialSpec") or {}
    name = spec.get("Config", "")
    wanted = list(configs)
    if name:
        wanted.append({"Runtime": {}, "ConfigID": "", "ConfigName": name})
    container["Configs"] = with_ids(shell, "Config", wanted)
    if name:
        container["Privileges"]["CredentialSpec"] = {**spec, "Config": container["Configs"][-1]["ConfigID"]}


COMMANDS = {
    "service create": Command(
        "service create",
        "[OPTIONS] IMAGE [COMMAND] [ARG...]",
        "Create a new service",
        create,
        CREATE,
        least=1,
        most=None,
        interspersed=False,
    ),
}
