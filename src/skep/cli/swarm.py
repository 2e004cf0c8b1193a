"""`skep swarm init|join|join-token|leave|update|ca|unlock|unlock-key`."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.shell import Failed
from skep.cli.swarm_values import external_ca, listen_address, pem_file, subnet
from skep.client import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

ALLOW_PRIVILEGED = "skep.allow.privileged"
AVAILABILITIES = ("active", "pause", "drain")


def init(shell: Shell, values: Values, _: list[str]) -> int:
    autolock = bool(values["autolock"])
    request = {
        "ListenAddr": values.get("listen-addr", "0.0.0.0:2377"),
        "AdvertiseAddr": values.get("advertise-addr", ""),
        "DataPathAddr": values.get("data-path-addr", ""),
        "DataPathPort": values.get("data-path-port", 0),
        "ForceNewCluster": bool(values["force-new-cluster"]),
        "Spec": spec_of(values),
        "AutoLockManagers": autolock,
        "Availability": availability(values),
        "DefaultAddrPool": values["default-addr-pool"],
        "SubnetSize": values.get("default-addr-pool-mask-length", 24),
    }
    try:
        id = shell.call(calls.swarm_init(request))
    except Exception as error:
        if "could not choose an IP address to advertise" in str(error) or "could not find the system's IP address" in str(error):
            raise Failed(f"{error} - specify one with --advertise-addr") from None
        raise
    shell.print(f"Swarm initialized: current node ({id}) is now a manager.\n")
    print_join_command(shell, id, worker=True)
    shell.print("To add a manager to this swarm, run 'skep swarm join-token manager' and follow the instructions.")
    if autolock:
        print_unlock_command(shell, shell.call(calls.unlock_key()).get("UnlockKey", ""))
    return 0


def availability(values: Values) -> str:
    text = str(values.get("availability", "")).lower()
    if text not in ("", *AVAILABILITIES):
        raise Failed(f'invalid availability "{values["availability"]}", only active, pause and drain are supported')
    return text


def empty_spec() -> dict[str, Any]:
    """What is not said is left to the daemon."""
    return {
        "Labels": None,
        "Orchestration": {},
        "Raft": {"ElectionTick": 0, "HeartbeatTick": 0},
        "Dispatcher": {},
        "CAConfig": {},
        "TaskDefaults": {},
        "EncryptionConfig": {"AutoLockManagers": False},
    }


def spec_of(values: Values) -> dict[str, Any]:
    spec = empty_spec()
    merge(spec, values)
    return spec


def merge(spec: dict[str, Any], values: Values) -> None:
    """The flags given, put into the spec."""
    for flag, group, field in (
        ("task-history-limit", "Orchestration", "TaskHistoryRetentionLimit"),
        ("dispatcher-heartbeat", "Dispatcher", "HeartbeatPeriod"),
        ("cert-expiry", "CAConfig", "NodeCertExpiry"),
        ("external-ca", "CAConfig", "ExternalCAs"),
        ("max-snapshots", "Raft", "KeepOldSnapshots"),
        ("snapshot-interval", "Raft", "SnapshotInterval"),
        ("autolock", "EncryptionConfig", "AutoLockManagers"),
    ):
        if values.given(flag):
            spec[group] = {**(spec.get(group) or {}), field: values[flag]}
    if values.given("allow-privileged"):
        labels = {key: value for key, value in (spec.get("Labels") or {}).items() if key != ALLOW_PRIVILEGED}
        allowed = {ALLOW_PRIVILEGED: values["allow-privileged"]} if values["allow-privileged"] else {}
        spec["Labels"] = {**labels, **allowed}


def print_join_command(shell: Shell, node_id: str, *, worker: bool = False, manager: bool = False) -> None:
    node = shell.call(calls.node_inspect(node_id))
    tokens = shell.call(calls.swarm_inspect())["JoinTokens"]
    if not node.get("ManagerStatus"):
        return
    for wanted, role in ((worker, "Worker"), (manager, "Manager")):
        if wanted:
            shell.print(f"To add a {role.lower()} to this swarm, run the following command:\n")
            shell.print(f"    skep swarm join --token {tokens[role]} {node['ManagerStatus']['Addr']}\n")


def print_unlock_command(shell: Shell, key: str) -> None:
    if key:
        shell.print("To unlock a swarm manager after it restarts, run the `skep swarm unlock`\ncommand and provide the following key:\n")
        shell.print(f"    {key}\n\nRemember to store this key in a password manager, since without it you")
        shell.print("will not be able to restart the manager.")


def join(shell: Shell, values: Values, words: list[str]) -> int:
    request = {
        "ListenAddr": values.get("listen-addr", "0.0.0.0:2377"),
        "AdvertiseAddr": values.get("advertise-addr", ""),
        "DataPathAddr": values.get("data-path-addr", ""),
        "RemoteAddrs": [words[0]],
        "JoinToken": values.get("token", ""),
        "Availability": availability(values),
    }
    shell.call(calls.swarm_join(request))
    manager = shell.call(calls.info())["Swarm"]["ControlAvailable"]
    shell.print(f"This node joined a swarm as a {'manager' if manager else 'worker'}.")
    return 0


def join_token(shell: Shell, values: Values, words: list[str]) -> int:
    role = words[0]
    if role not in ("worker", "manager"):
        raise Failed("unknown role " + role)
    quiet = values["quiet"]
    if values["rotate"]:
        swarm = shell.call(calls.swarm_inspect())
        shell.call(
            calls.swarm_update(swarm["Version"]["Index"], swarm["Spec"], worker_token=role == "worker", manager_token=role == "manager")
        )
        if not quiet:
            shell.print(f"Successfully rotated {role} join token.\n")
    swarm = shell.call(calls.swarm_inspect())
    if quiet:
        shell.print(swarm["JoinTokens"][role.title()])
        return 0
    print_join_command(shell, shell.call(calls.info())["Swarm"]["NodeID"], worker=role == "worker", manager=role == "manager")
    return 0


def leave(shell: Shell, values: Values, _: list[str]) -> int:
    shell.call(calls.swarm_leave(values["force"]))
    shell.print("Node left the swarm.")
    return 0


def update(shell: Shell, values: Values, _: list[str]) -> int:
    if not values.count:
        from skep.cli.flags import help_text

        shell.print(help_text(COMMANDS["swarm update"]), end="")
        return 0
    swarm = shell.call(calls.swarm_inspect())
    before = (swarm["Spec"].get("EncryptionConfig") or {}).get("AutoLockManagers", False)
    merge(swarm["Spec"], values)
    after = (swarm["Spec"].get("EncryptionConfig") or {}).get("AutoLockManagers", False)
    shell.call(calls.swarm_update(swarm["Version"]["Index"], swarm["Spec"]))
    shell.print("Swarm updated.")
    if after and not before:
        print_unlock_command(shell, shell.call(calls.unlock_key()).get("UnlockKey", ""))
    return 0


def unlock_key(shell: Shell, values: Values, _: list[str]) -> int:
    quiet = values["quiet"]
    if values["rotate"]:
        swarm = shell.call(calls.swarm_inspect())
        if not (swarm["Spec"].get("EncryptionConfig") or {}).get("AutoLockManagers"):
            raise Failed("cannot rotate because autolock is not turned on")
        shell.call(calls.swarm_update(swarm["Version"]["Index"], swarm["Spec"], unlock_key=True))
        if not quiet:
            shell.print("Successfully rotated manager unlock key.\n")
    key = shell.call(calls.unlock_key()).get("UnlockKey", "")
    if not key:
        raise Failed("no unlock key is set")
    if quiet:
        shell.print(key)
    else:
        print_unlock_command(shell, key)
    return 0


def unlock(shell: Shell, _: Values, __: list[str]) -> int:
    state = (shell.call(calls.info()).get("Swarm") or {}).get("LocalNodeState")
    if state == "inactive":
        raise Failed("Error: This node is not part of a swarm")
    if state != "locked":
        raise Failed("Error: swarm is not locked")
    shell.call(calls.swarm_unlock(_read_key(shell)))
    return 0


def _read_key(shell: Shell) -> str:
    """Not shown while it is typed."""
    if shell.input.isatty():
        import getpass

        return getpass.getpass("Enter unlock key: ").strip()
    return shell.input.readline().strip()


def certificate(shell: Shell, values: Values, _: list[str]) -> int:
    swarm = shell.call(calls.swarm_inspect())
    if not values["rotate"]:
        for flag in ("ca-cert", "ca-key", "cert-expiry", "external-ca"):
            if values.given(flag):
                raise Failed(f"`--{flag}` flag requires the `--rotate` flag to update the CA")
        return _show_root(shell, swarm)
    spec = swarm["Spec"]
    merge(spec, values)
    spec["CAConfig"].update(SigningCACert=values.get("ca-cert", ""), SigningCAKey=values.get("ca-key", ""))
    spec["CAConfig"]["ForceRotate"] = spec["CAConfig"].get("ForceRotate", 0) + 1
    if values.given("ca-cert") and not values.given("ca-key", "external-ca"):
        raise Failed("the --ca-cert flag requires that a --ca-key flag and/or --external-ca flag be provided as well")
    spec["CAConfig"] = {key: value for key, value in spec["CAConfig"].items() if value != ""}
    shell.call(calls.swarm_update(swarm["Version"]["Index"], spec))
    if values["detach"]:
        return 0
    told = False
    while (swarm := shell.call(calls.swarm_inspect())).get("RootRotationInProgress"):
        if not told and not values["quiet"]:
            shell.print("rotating the certificates of all nodes...")
            told = True
        shell.sleep(0.2)
    return _show_root(shell, swarm)


def _show_root(shell: Shell, swarm: dict[str, Any]) -> int:
    root = (swarm.get("TLSInfo") or {}).get("TrustRoot", "")
    if not root:
        raise Failed("No CA information available")
    shell.print(root.strip())
    return 0


ADVERTISE = Flag("advertise-addr", "string", 'Advertised address (format: "<ip|interface>[:port]")')
AVAILABILITY = Flag("availability", "string", 'Availability of the node ("active", "pause", "drain")', default='"active"')
DATA_PATH = Flag("data-path-addr", "string", 'Address or interface to use for data path traffic (format: "<ip|interface>")')
LISTEN = Flag("listen-addr", "node-addr", 'Listen address (format: "<ip|interface>[:port]")', default="0.0.0.0:2377", parse=listen_address)
EXPIRY = Flag("cert-expiry", "duration", "Validity period for node certificates (ns|us|ms|s|m|h)", default="2160h0m0s")
EXTERNAL = Flag("external-ca", "external-ca", "Specifications of one or more certificate signing endpoints", parse=external_ca)
SPEC = (
    EXPIRY,
    Flag("dispatcher-heartbeat", "duration", "Dispatcher heartbeat period (ns|us|ms|s|m|h)", default="5s"),
    EXTERNAL,
    Flag("max-snapshots", "uint", "Number of additional Raft snapshots to retain"),
    Flag("snapshot-interval", "uint", "Number of log entries between Raft snapshots", default="10000"),
    Flag("task-history-limit", "int", "Task history retention limit", default="5"),
)
QUIET_TOKEN = Flag("quiet", "bool", "Only display token", "q")

COMMANDS = {
    "swarm init": Command(
        "swarm init",
        "[OPTIONS]",
        "Initialize a swarm",
        init,
        (
            ADVERTISE,
            Flag("autolock", "bool", "Enable manager autolocking (requiring an unlock key to start a stopped manager)"),
            AVAILABILITY,
            DATA_PATH,
            Flag(
                "data-path-port",
                "uint32",
                "Port number to use for data path traffic (1024 - 49151). "
                "If no value is set or is set to 0, the default port (4789) is used.",
            ),
            Flag("default-addr-pool", "ipNetSlice", "default address pool in CIDR format", default="[]", parse=subnet),
            Flag("default-addr-pool-mask-length", "uint32", "default address pool subnet mask length", default="24"),
            Flag("force-new-cluster", "bool", "Force create a new cluster from current state"),
            LISTEN,
            *SPEC,
        ),
    ),
    "swarm join": Command(
        "swarm join",
        "[OPTIONS] HOST:PORT",
        "Join a swarm as a node and/or manager",
        join,
        (ADVERTISE, AVAILABILITY, DATA_PATH, LISTEN, Flag("token", "string", "Token for entry into the swarm")),
        least=1,
        most=1,
    ),
    "swarm join-token": Command(
        "swarm join-token",
        "[OPTIONS] (worker|manager)",
        "Manage join tokens",
        join_token,
        (QUIET_TOKEN, Flag("rotate", "bool", "Rotate join token")),
        least=1,
        most=1,
    ),
    "swarm leave": Command(
        "swarm leave",
        "[OPTIONS]",
        "Leave the swarm",
        leave,
        (Flag("force", "bool", "Force this node to leave the swarm, ignoring warnings", "f"),),
    ),
    "swarm update": Command(
        "swarm update",
        "[OPTIONS]",
        "Update the swarm",
        update,
        (
            Flag("autolock", "bool", "Change manager autolocking setting (true|false)"),
            Flag(
                "allow-privileged",
                "string",
                "Services whose labels skep.privileged and skep.devices are obeyed: names, or patterns such as agent-*, with commas"
                ' between ("": none)',
                own=True,
            ),
            *SPEC,
        ),
    ),
    "swarm unlock": Command("swarm unlock", "", "Unlock swarm", unlock),
    "swarm unlock-key": Command(
        "swarm unlock-key",
        "[OPTIONS]",
        "Manage the unlock key",
        unlock_key,
        (QUIET_TOKEN, Flag("rotate", "bool", "Rotate unlock key")),
    ),
    "swarm ca": Command(
        "swarm ca",
        "[OPTIONS]",
        "Display and rotate the root CA",
        certificate,
        (
            Flag("ca-cert", "pem-file", "Path to the PEM-formatted root CA certificate to use for the new cluster", parse=pem_file),
            Flag("ca-key", "pem-file", "Path to the PEM-formatted root CA key to use for the new cluster", parse=pem_file),
            EXPIRY,
            Flag("detach", "bool", "Exit immediately instead of waiting for the root rotation to converge", "d"),
            EXTERNAL,
            Flag("quiet", "bool", "Suppress progress output", "q"),
            Flag("rotate", "bool", "Rotate the swarm CA - if no certificate or key are provided, new ones will be generated"),
        ),
    ),
}
