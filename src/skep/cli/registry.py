"""Which image exactly: the digest a registry has for a name, and the credentials that are kept for it."""

from __future__ import annotations

import re

from skep.client import calls
from skep.errors import SkepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from skep.cli.shell import Shell

WARNING = """image {0} could not be accessed on a registry to record
its digest. Each node will access {0} independently,
possibly leading to different nodes running different
versions of the image.
"""


def tagged(image: str) -> str:
    """`nginx` -> `nginx:latest`; what has a digest, or is no image name, stays."""
    if "@" in image or ":" in image.rpartition("/")[2] or not re.fullmatch(r"([\w.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*", image):
        return image
    return f"{image}:latest"


def resolve(shell: Shell, spec: dict[str, Any], auth: str | None) -> list[str]:
    """Writes digest and platforms into the spec; a registry that does not answer is a warning, to be shown when all else went well."""
    container = spec["TaskTemplate"]["ContainerSpec"]
    image = container.get("Image", "")
    if not image:
        return []
    try:
        found = shell.call(calls.distribution(image, auth))
    except SkepError:
        return [WARNING.format(image)]
    digest = found["Descriptor"]["digest"]
    if "@" not in image:
        container["Image"] = f"{image}@{digest}"
    platforms = [
        {key: value for key, value in (("Architecture", _architecture(p.get("architecture", ""))), ("OS", p.get("os", ""))) if value}
        for p in found.get("Platforms") or ()
    ]
    if platforms:
        spec["TaskTemplate"].setdefault("Placement", {})["Platforms"] = platforms
    return []


def _architecture(name: str) -> str:
    """Nodes name 32-bit ARM in too many ways to compare."""
    return "" if name.lower() == "arm" else name


def config_path(shell: Shell) -> str:
    folder = shell.environ.get("DOCKER_CONFIG") or shell.environ.get("HOME", "") + "/.docker"
    return f"{folder}/config.json"


def kept(shell: Shell) -> dict[str, Any]:
    """Docker's own config.json; {} where there is none that can be read."""
    import json

    try:
        with open(config_path(shell)) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def credentials(shell: Shell, image: str) -> str:
    """What `docker login` has kept for the image's registry, as X-Registry-Auth wants it; "" when there is nothing."""
    import base64
    import json

    domain = image.partition("/")[0] if "/" in image else ""
    if not domain or not ("." in domain or ":" in domain or domain == "localhost"):
        domain = "https://index.docker.io/v1/"
    found_here = kept(shell)
    helper = (found_here.get("credHelpers") or {}).get(domain) or found_here.get("credsStore")
    found: dict[str, str] = {}
    if helper:
        found = _ask_helper(helper, domain)
    else:
        entry = (found_here.get("auths") or {}).get(domain) or {}
        if entry.get("auth"):
            user, _, password = base64.b64decode(entry["auth"]).decode(errors="replace").partition(":")
            found = {"username": user, "password": password.rstrip("\0")}
        if entry.get("identitytoken"):
            found["identitytoken"] = entry["identitytoken"]
    if not found:
        return ""
    return base64.urlsafe_b64encode(json.dumps({**found, "serveraddress": domain}, separators=(",", ":")).encode()).decode()


def _ask_helper(name: str, domain: str) -> dict[str, str]:
    import json
    import subprocess

    try:
        done = subprocess.run([f"docker-credential-{name}", "get"], input=domain, capture_output=True, text=True, timeout=30)
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    if not answer.get("Secret"):
        return {}
    if answer.get("Username") == "<token>":
        return {"identitytoken": answer["Secret"]}
    return {"username": answer.get("Username", ""), "password": answer["Secret"]}
