"""`skep service update`: the service's own spec, with what the flags say changed in it, sent back whole."""

from __future__ import annotations

from skep.cli import options
from skep.cli.flags import Command
from skep.cli.registry import credentials, resolve, tagged
from skep.cli.service_create import HEALTH, RESTART, ROLLOUT, default_rollout, finish, network_id, set_configs, ulimits, with_ids
from skep.cli.service_flags import UPDATE
from skep.cli.shell import Failed
from skep.cli.words import SECOND, Bad
from skep.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

    Fields = dict[str, Any]


def update(shell: Shell, values: Values, words: list[str]) -> int:
    name = words[0]
    service = shell.call(calls.service_inspect(name))
    if values["rollback"]:
        if values.count - sum(values.given(flag) for flag in ("rollback", "detach", "quiet")):
            raise Failed("other flags may not be combined with --rollback")
        return send(shell, values, service, name, auth_from="spec", rollback=True)
    spec = service["Spec"]
    try:
        change(shell, spec, values)
    except Bad as error:
        raise Failed(str(error)) from None
    container = spec["TaskTemplate"]["ContainerSpec"]
    auth = credentials(shell, container["Image"]) if values["with-registry-auth"] else None
    unresolved: list[str] = []
    if values.given("image"):
        container["Image"] = tagged(container["Image"])
        if not values["no-resolve-image"]:
            unresolved = resolve(shell, spec, auth)
    return send(shell, values, service, name, auth=auth, auth_from="" if auth is not None else "spec", unresolved=unresolved)


def send(
    shell: Shell,
    values: Values,
    service: Fields,
    name: str,
    *,
    auth: str | None = None,
    auth_from: str = "",
    rollback: bool = False,
    unresolved: Sequence[str] = (),
) -> int:
    call = calls.service_update(
        service["ID"],
        service["Version"]["Index"],
        service["Spec"],
        auth=auth,
        auth_from=auth_from,
        rollback="previous" if rollback else "",
    )
    answer = shell.call(call) or {}
    for warning in (*(answer.get("Warnings") or ()), *unresolved):
        shell.warn(warning)
    shell.print(name)
    return finish(shell, values, name)


def change(shell: Shell, spec: Fields, values: Values) -> None:
    """Raises Failed, Bad, and what the daemon says of names that are looked up."""
    template = spec["TaskTemplate"]
    container = template.setdefault("ContainerSpec", {})
    _map(spec, "Labels", values["label-add"], values["label-rm"])
    for field, flag in (("Labels", "container-label"), ("Sysctls", "sysctl")):
        _map(container, field, values[f"{flag}-add"], values[f"{flag}-rm"])
        _set(container, field, container.get(field))
    for flag, field in PLAIN.items():
        if values.given(flag):
            _set(container, field, values[flag])
    if values.given("init"):
        container["Init"] = values["init"]
    _environment(container, values, shell.environ)
    _mounts(container, values)
    if values["ulimit-add"] or values["ulimit-rm"]:
        kept = [limit for limit in container.get("Ulimits") or () if limit["Name"] not in values["ulimit-rm"]]
        _set(container, "Ulimits", ulimits([*kept, *values["ulimit-add"]]))
    _resources(template, values)
    _restart(template, values)
    _placement(template, values)
    _networks(shell, spec, values)
    _mode(spec, values)
    _rollouts(spec, values)
    _endpoint(spec, values)
    if values["group-add"] or values["group-rm"]:
        _list(container, "Groups", values["group-add"], values["group-rm"])
    _names(container, values)
    if values["log-driver"]:
        template["LogDriver"] = {"Name": values["log-driver"]}
        _set(template["LogDriver"], "Options", options.key_values(values["log-opt"]))
    if values["force"]:
        template["ForceUpdate"] = template.get("ForceUpdate", 0) + 1
    _health(container, values)
    _capabilities(container, values)
    _files(shell, container, values)


PLAIN = {
    "image": "Image",
    "args": "Args",
    "entrypoint": "Command",
    "workdir": "Dir",
    "user": "User",
    "hostname": "Hostname",
    "isolation": "Isolation",
    "stop-grace-period": "StopGracePeriod",
    "tty": "TTY",
    "read-only": "ReadOnly",
    "stop-signal": "StopSignal",
    "oom-score-adj": "OomScoreAdj",
}
"""Flag -> field of the container that it replaces."""


def _set(fields: Fields, name: str, value: Any) -> None:
    """An empty value takes the field away."""
    if value is None or (not value and name != "StopGracePeriod"):
        fields.pop(name, None)
    else:
        fields[name] = value


def _map(fields: Fields, name: str, add: Iterable[str], remove: Iterable[str]) -> None:
    """Removed first, then added."""
    found = {key: value for key, value in (fields.get(name) or {}).items() if key not in set(remove)}
    found |= options.key_values(add)
    if found or name in fields:
        fields[name] = found


def _list(fields: Fields, name: str, add: list[Any], remove: Iterable[Any]) -> None:
    """Each once, in order of the alphabet."""
    _set(fields, name, sorted({item for item in [*(fields.get(name) or ()), *add] if item not in set(remove)}))


def _environment(container: Fields, values: Values, environ: Mapping[str, str]) -> None:
    """New ones come first; a variable that is there gets its new value in its place."""
    add, remove = options.with_values(values["env-add"], environ), set(values["env-rm"])
    if not add and not remove:
        return
    found = {line.partition("=")[0]: line for line in container.get("Env") or ()}
    new = {line.partition("=")[0]: line for line in add}
    merged = {**{key: line for key, line in new.items() if key not in found}, **found, **new}
    _set(container, "Env", [line for key, line in merged.items() if key not in remove])


def _mounts(container: Fields, values: Values) -> None:
    add, remove = values["mount-add"], set(values["mount-rm"])
    if not add and not remove:
        return
    new: Fields = {}
    for mount in add:
        if mount["Target"] in new:
            raise Failed("duplicate mount target")
        new[mount["Target"]] = mount
    found = {**{mount["Target"]: mount for mount in container.get("Mounts") or ()}, **new}
    kept = [mount for target, mount in found.items() if target not in remove]
    _set(container, "Mounts", sorted(kept, key=lambda mount: (mount.get("Source", ""), mount["Target"])))


def _resources(template: Fields, values: Values) -> None:
    numbers = (
        ("limit-cpu", "Limits", "NanoCPUs"),
        ("limit-memory", "Limits", "MemoryBytes"),
        ("limit-pids", "Limits", "Pids"),
        ("reserve-cpu", "Reservations", "NanoCPUs"),
        ("reserve-memory", "Reservations", "MemoryBytes"),
    )
    add, remove = options.generic_resources(values["generic-resource-add"]), values["generic-resource-rm"]
    if not (add or remove or values.given(*(flag for flag, _, _ in numbers))):
        return
    resources = template.setdefault("Resources", {})
    for flag, group, field in numbers:
        if values.given(flag):
            resources.setdefault("Limits", {})
            resources.setdefault("Reservations", {})
            _set(resources[group], field, values[flag])
    if not add and not remove:
        return
    reservations = resources.setdefault("Reservations", {})
    found = {
        item["DiscreteResourceSpec"]["Kind"]: item for item in reservations.get("GenericResources") or () if "DiscreteResourceSpec" in item
    }
    found |= {item["DiscreteResourceSpec"]["Kind"]: item for item in add}
    for kind in remove:
        if kind not in found:
            raise Failed(f"could not find generic-resource `{kind}` to remove it")
        del found[kind]
    _set(reservations, "GenericResources", list(found.values()))


def _restart(template: Fields, values: Values) -> None:
    if values.given(*RESTART):
        policy = template.get("RestartPolicy") or {"Condition": "any", "Delay": 5 * SECOND, "MaxAttempts": 0}
        template["RestartPolicy"] = {**policy, **{field: values[flag] for flag, field in RESTART.items() if values.given(flag)}}


def _placement(template: Fields, values: Values) -> None:
    if not values.given("constraint-add", "constraint-rm", "placement-pref-add", "placement-pref-rm", "replicas-max-per-node"):
        return
    placement = template["Placement"] = template.get("Placement") or {}
    if values["constraint-add"] or values["constraint-rm"]:
        _list(placement, "Constraints", values["constraint-add"], values["constraint-rm"])
    if values["placement-pref-add"] or values["placement-pref-rm"]:
        kept = [preference for preference in placement.get("Preferences") or () if preference not in values["placement-pref-rm"]]
        _set(placement, "Preferences", [*kept, *values["placement-pref-add"]])
    if values.given("replicas-max-per-node"):
        _set(placement, "MaxReplicas", values["replicas-max-per-node"])


def _networks(shell: Shell, spec: Fields, values: Values) -> None:
    add, remove = values["network-add"], values["network-rm"]
    if not add and not remove:
        return
    template = spec["TaskTemplate"]
    found = template.get("Networks") or spec.get("Networks") or []
    spec.pop("Networks", None)
    gone = {network_id(shell, name) for name in remove}
    kept = [network for network in found if network["Target"] not in gone]
    for network in add:
        id = network_id(shell, network["Target"])
        if any(other["Target"] == id for other in kept):
            raise Failed(f"service is already attached to network {network['Target']}")
        kept.append({**network, "Target": id})
    _set(template, "Networks", sorted(kept, key=lambda network: str(network["Target"])))


def _mode(spec: Fields, values: Values) -> None:
    mode = spec["Mode"]
    if values.given("replicas"):
        if "Replicated" not in mode:
            raise Failed("replicas can only be used with replicated mode")
        mode["Replicated"]["Replicas"] = values["replicas"]
    if values.given("max-concurrent"):
        if "ReplicatedJob" not in mode:
            raise Failed("max-concurrent can only be used with replicated-job mode")
        mode["ReplicatedJob"]["MaxConcurrent"] = values["max-concurrent"]


def _rollouts(spec: Fields, values: Values) -> None:
    for kind, field in (("update", "UpdateConfig"), ("rollback", "RollbackConfig")):
        given = {name: values[f"{kind}-{flag}"] for flag, name in ROLLOUT.items() if values.given(f"{kind}-{flag}")}
        if given:
            spec[field] = {**(spec.get(field) or default_rollout()), **given}
            for name in ("Delay", "Monitor"):
                if not spec[field].get(name, 1):
                    del spec[field][name]


def _endpoint(spec: Fields, values: Values) -> None:
    add, remove = [port for many in values["publish-add"] for port in many], [port for many in values["publish-rm"] for port in many]
    if not (values.given("endpoint-mode") or add or remove):
        return
    endpoint = spec.get("EndpointSpec") or {}
    spec["EndpointSpec"] = endpoint
    if values.given("endpoint-mode"):
        endpoint["Mode"] = values["endpoint-mode"]
    if not add and not remove:
        return
    gone = {_port_identity(port) for port in remove}
    found = {_port_text(port): port for port in reversed(endpoint.get("Ports") or ())}
    kept = {text: port for text, port in found.items() if _port_identity(port) not in gone}
    for port in add:
        if _port_text(port) not in found:
            kept[_port_text(port)] = port
    _set(endpoint, "Ports", [port for _, port in sorted(kept.items())])


def _port_identity(port: Fields) -> tuple[str, int, str]:
    """A port is removed by what it leads to."""
    return port.get("Protocol") or "tcp", port.get("TargetPort", 0), port.get("PublishMode") or "ingress"


def _port_text(port: Fields) -> str:
    return f"{port.get('PublishedPort', 0)}:{port.get('TargetPort', 0)}/{port.get('Protocol', '')}/{port.get('PublishMode', '')}"


def _names(container: Fields, values: Values) -> None:
    """DNS and /etc/hosts."""
    flags = {"dns": "Nameservers", "dns-search": "Search", "dns-option": "Options"}
    if any(values[f"{flag}-{verb}"] for flag in flags for verb in ("add", "rm")):
        dns = container.get("DNSConfig") or {}
        container["DNSConfig"] = dns
        for flag, field in flags.items():
            _list(dns, field, values[f"{flag}-add"], values[f"{flag}-rm"])
    add, remove = values["host-add"], values["host-rm"]
    if add or remove:
        hosts = [left for line in container.get("Hosts") or () if (left := _without_names(line, remove))]
        _set(container, "Hosts", list(dict.fromkeys([*hosts, *add])))


def _without_names(line: str, remove: Iterable[str]) -> str:
    """`ip name...` without the names that go (`name` or `name:ip`); "" when none is left."""
    address, _, rest = line.partition(" ")
    names = rest.split()
    for text in remove:
        name, _, wanted = text.partition("=") if "=" in text else text.partition(":")
        if wanted in ("", address) and name in names:
            names.remove(name)
    return f"{address} {' '.join(names)}" if names else ""


def _health(container: Fields, values: Values) -> None:
    flags = [flag for flag in HEALTH if flag != "health-start-interval"]
    if not values.given("no-healthcheck", *HEALTH):
        return
    if values["no-healthcheck"]:
        if values.given(*HEALTH):
            raise Failed("--no-healthcheck conflicts with --health-* options")
        container["Healthcheck"] = {"Test": ["NONE"]}
        return
    check = container.get("Healthcheck") or {}
    container["Healthcheck"] = check
    if check.get("Test", [""])[0:1] == ["NONE"]:
        del check["Test"]
    fields = {
        "health-interval": "Interval",
        "health-timeout": "Timeout",
        "health-start-period": "StartPeriod",
        "health-start-interval": "StartInterval",
        "health-retries": "Retries",
    }
    for flag in flags + ["health-start-interval"]:
        if flag in fields and values.given(flag):
            _set(check, fields[flag], values[flag])
    if values.given("health-cmd"):
        _set(check, "Test", ["CMD-SHELL", values["health-cmd"]] if values["health-cmd"] else None)


def _capabilities(container: Fields, values: Values) -> None:
    """Adding what is dropped, or dropping what is added, takes it off that list; adding wins; RESET empties a list first; ALL is all."""
    if not values.given("cap-add", "cap-drop"):
        return
    lists = []
    for flag, field in (("cap-add", "CapabilityAdd"), ("cap-drop", "CapabilityDrop")):
        new, old = options.capabilities(values[flag]), options.capabilities(container.get(field) or ())
        lists.append((new - {"RESET"}, set() if "RESET" in new else old))
    (to_add, added), (to_drop, dropped) = lists
    to_drop -= to_add
    added, dropped = (added - to_drop) | (to_add - dropped), (dropped - to_add) | (to_drop - added)
    for field, names in (("CapabilityAdd", added), ("CapabilityDrop", dropped)):
        _set(container, field, ["ALL"] if "ALL" in names else sorted(names))


def _files(shell: Shell, container: Fields, values: Values) -> None:
    """Secrets, configs, and the credential spec that may name one."""
    add, remove = values["secret-add"], set(values["secret-rm"])
    if add or remove:
        kept = [secret for secret in container.get("Secrets") or () if secret["SecretName"] not in remove]
        _set(container, "Secrets", kept + (with_ids(shell, "Secret", add) if add else []))
    if values.given("credential-spec"):
        before = container.get("Privileges") or {"NoNewPrivileges": False, "SELinuxContext": None}
        container["Privileges"] = {**before, "CredentialSpec": values["credential-spec"]}
    add, remove = values["config-add"], set(values["config-rm"])
    named = (values["credential-spec"] or {}).get("Config")
    if add or remove or named:
        kept = [config for config in container.get("Configs") or () if config["ConfigName"] not in remove]
        if named:
            kept = [config for config in kept if config.get("Runtime") is None]
        new: Fields = {"Privileges": container.get("Privileges") or {}}
        if add or named:
            set_configs(shell, new, add)
        if named:
            container["Privileges"] = new["Privileges"]
        _set(container, "Configs", kept + new.get("Configs", []))


COMMANDS = {
    "service update": Command("service update", "[OPTIONS] SERVICE", "Update a service", update, UPDATE, least=1, most=1),
}
