"""`skep login`, `skep logout`: credentials for registries, kept where Docker keeps them (config.json), so that both commands share them."""

from __future__ import annotations

import base64
import json
import os

from skep.cli.flags import Command, Flag
from skep.cli.registry import config_path, kept
from skep.cli.shell import Failed
from skep.client import node
from skep.client.unix import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

NOT_CHECKED = 501
"""The daemon has no way to ask the registry: the login is kept, and proves itself with the first pull."""

HUB = "https://index.docker.io/v1/"
UNENCRYPTED = """
WARNING! Your credentials are stored unencrypted in '{}'.
Configure a credential helper to remove this warning. See
https://docs.docker.com/go/credential-store/
"""


def login(shell: Shell, values: Values, words: list[str]) -> int:
    server = _server(words)
    config = kept(shell)
    helper = (config.get("credHelpers") or {}).get(server) or config.get("credsStore")
    if helper:
        raise Failed(f"the credential helper docker-credential-{helper} keeps this login: use it to log in, skep reads from it")
    user, password = _asked(shell, values)
    try:
        answer = shell.call(node.login({"username": user, "password": password, "serveraddress": server})) or {}
    except ApiError as error:
        if error.status != NOT_CHECKED:
            raise
        shell.warn(f"WARNING! {error}")
        answer = {"Status": "Login kept"}
    entry: dict[str, Any] = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
    if answer.get("IdentityToken"):
        entry = {"auth": base64.b64encode(f"{user}:".encode()).decode(), "identitytoken": answer["IdentityToken"]}
    _store(shell, {**config, "auths": {**(config.get("auths") or {}), server: entry}})
    shell.warn(UNENCRYPTED.format(config_path(shell)))
    shell.print(answer.get("Status") or "Login Succeeded")
    return 0


def logout(shell: Shell, _: Values, words: list[str]) -> int:
    server = _server(words)
    config = kept(shell)
    helper = (config.get("credHelpers") or {}).get(server) or config.get("credsStore")
    if helper:
        raise Failed(f"the credential helper docker-credential-{helper} keeps this login: use it to log out")
    auths = dict(config.get("auths") or {})
    if server not in auths:
        shell.print(f"Not logged in to {server}")
        return 0
    del auths[server]
    shell.print(f"Removing login credentials for {server}")
    _store(shell, {**config, "auths": auths})
    return 0


def _server(words: list[str]) -> str:
    if not words or words[0] in ("docker.io", "index.docker.io", "registry-1.docker.io"):
        return HUB
    return words[0].removeprefix("https://").removeprefix("http://").partition("/")[0]


def _asked(shell: Shell, values: Values) -> tuple[str, str]:
    user, password = values["username"] or "", values["password"] or ""
    if values["password-stdin"]:
        if password:
            raise Failed("conflicting options: cannot specify both --password and --password-stdin")
        if not user:
            raise Failed("the --password-stdin option requires --username to be set")
        return user, shell.input.read().rstrip("\r\n")
    if password:
        shell.warn("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
    if user and password:
        return user, password
    if not shell.input.isatty():
        raise Failed("Error: Cannot perform an interactive login from a non TTY device")
    if not user:
        shell.print("Username: ", end="")
        shell.out.flush()
        user = shell.input.readline().strip()
        if not user:
            raise Failed("Error: Non-null Username Required")
    from getpass import getpass

    password = password or getpass("Password: ")
    if not password:
        raise Failed("Error: Password Required")
    return user, password


def _store(shell: Shell, config: dict[str, Any]) -> None:
    """Readable by its owner only; whole, or as it was before."""
    path = config_path(shell)
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(config, indent="\t"))
        os.replace(partial, os.path.realpath(path))
    except OSError as error:
        raise Failed(f"Error saving credentials: {error}") from None


COMMANDS = {
    "login": Command(
        "login",
        "[OPTIONS] [SERVER]",
        "Authenticate to a registry",
        login,
        (
            Flag("password", "string", "Password or Personal Access Token (PAT)", "p"),
            Flag("password-stdin", "bool", "Take the Password or Personal Access Token (PAT) from stdin"),
            Flag("username", "string", "Username", "u"),
        ),
        most=1,
        details="Authenticate to a registry.\nDefaults to Docker Hub if no server is specified.",
    ),
    "logout": Command(
        "logout",
        "[SERVER]",
        "Log out from a registry",
        logout,
        most=1,
        details="Log out from a registry.\nIf no server is specified, the default is defined by the daemon.",
    ),
}
