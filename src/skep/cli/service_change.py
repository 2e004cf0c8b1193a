"""`skep service scale` and `rollback`."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.service_create import finish
from skep.cli.service_update import send
from skep.cli.shell import Failed, message_of
from skep.cli.words import Bad, parse_uint
from skep.client import calls
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from skep.cli.flags import Values
    from skep.cli.shell import Shell


def scale(shell: Shell, values: Values, words: list[str]) -> int:
    """All are changed first, then each is waited for."""
    failed, changed = [], []
    for word in words:
        name, equal, text = word.partition("=")
        if not equal:
            raise Failed(
                f"invalid scale specifier '{word}'.\nSee 'skep service scale --help'.\n\n"
                "Usage:  skep service scale SERVICE=REPLICAS [SERVICE=REPLICAS...]\n\nScale one or multiple replicated services"
            )
        try:
            number = parse_uint(text)
        except Bad as error:
            failed.append(f"{name}: invalid replicas value {text}: {error}")
            continue
        try:
            _scale(shell, name, number)
            changed.append(name)
        except (SkepError, Failed) as error:
            failed.append(f"{name}: {message_of(error)}")
    for name in changed:
        try:
            finish(shell, values, name)
        except (SkepError, Failed) as error:
            failed.append(f"{name}: {message_of(error)}")
    if failed:
        raise Failed("\n".join(failed))
    return 0


def _scale(shell: Shell, name: str, number: int) -> None:
    service = shell.call(calls.service_inspect(name))
    mode = service["Spec"]["Mode"]
    if "Replicated" in mode:
        mode["Replicated"]["Replicas"] = number
    elif "ReplicatedJob" in mode:
        mode["ReplicatedJob"]["TotalCompletions"] = number
    else:
        raise Failed("scale can only be used with replicated or replicated-job mode")
    answer = shell.call(calls.service_update(service["ID"], service["Version"]["Index"], service["Spec"])) or {}
    for warning in answer.get("Warnings") or ():
        shell.warn(warning)
    shell.print(f"{name} scaled to {number}")


def rollback(shell: Shell, values: Values, words: list[str]) -> int:
    return send(shell, values, shell.call(calls.service_inspect(words[0])), words[0], rollback=True)


DETACH = Flag("detach", "bool", "Exit immediately instead of waiting for the service to converge", "d")

COMMANDS = {
    "service scale": Command(
        "service scale",
        "SERVICE=REPLICAS [SERVICE=REPLICAS...]",
        "Scale one or multiple replicated services",
        scale,
        (DETACH,),
        least=1,
        most=None,
    ),
    "service rollback": Command(
        "service rollback",
        "[OPTIONS] SERVICE",
        "Revert changes to a service's configuration",
        rollback,
        (DETACH, Flag("quiet", "bool", "Suppress progress output", "q")),
        least=1,
        most=1,
    ),
}
