"""What a container's spec may say, and what skep runs of it: checked when a service is made or changed, and again by the node once the
templates are expanded, so that both say the same. Pure.

Docker finds most of this out when a task is prepared; here a service that could never run is refused at once, in Docker's words where
it has any. What depends on a node (a bind mount's source, a user of the image, a log driver) is the node's to say.
"""

from __future__ import annotations

import base64
import posixpath
import re
import signal
from collections.abc import Iterable
from ipaddress import ip_address

from skep.errors import Invalid, NotImplementedHere, SkepError
from skep.model.spec import ContainerSpec, Healthcheck, Mount, Privileges, Ulimit

PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
HEALTH_TESTS = ("NONE", "CMD", "CMD-SHELL")
ULIMITS = frozenset("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split())
_HOSTNAME = re.compile(r"[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9_])?", re.ASCII)
_SYSCTL = re.compile(r"[A-Za-z0-9_*./-]+", re.ASCII)


def check_container(spec: ContainerSpec, *, hostname: bool = True) -> None:
    """`spec`: with its templates expanded. `hostname`: it is the real one, not made of a dry run's words. Raises Invalid,
    NotImplementedHere, or SkepError with one sentence."""
    for word in (*(spec.command or ()), *(spec.args or ()), *(spec.env or ()), spec.dir, spec.user, spec.hostname):
        if "\0" in word:
            raise Invalid(f"invalid argument: {word!r} holds a zero byte")
    for item in spec.env or ():
        if not item or item.startswith("="):
            raise Invalid(f"invalid environment variable: {item}")
    if spec.dir and not spec.dir.startswith("/"):
        raise Invalid(f"the working directory '{spec.dir}' is invalid, it needs to be an absolute path")
    if hostname and spec.hostname and not _HOSTNAME.fullmatch(spec.hostname):
        raise Invalid(f"invalid hostname format: {spec.hostname}")
    if spec.stop_signal:
        signal_number(spec.stop_signal)
    if (spec.stop_grace_period or 0) < 0:
        raise Invalid("ContainerSpec: StopGracePeriod cannot be negative")
    if not -1000 <= spec.oom_score_adj <= 1000:
        raise Invalid(f"Invalid value {spec.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if spec.isolation not in ("", "default"):
        raise NotImplementedHere(f"isolation {spec.isolation} exists on Windows only")
    _check_names(spec)
    check_ulimits(spec.ulimits or ())
    for key in spec.sysctls or {}:
        if not _SYSCTL.fullmatch(key) or ".." in key or key.startswith(("/", ".")):
            raise Invalid(f"invalid sysctl: {key}")
    if spec.privileges is not None:
        check_privileges(spec.privileges)
    if spec.healthcheck is not None:
        check_health_test(spec.healthcheck)
    check_mounts(spec.mounts or ())


def _check_names(spec: ContainerSpec) -> None:
    for entry in spec.hosts or ():
        words = entry.split()
        if len(words) < 2:
            raise Invalid(f'bad format for add-host: "{entry}"')
        _check_address(words[0], f'invalid IP address in add-host: "{words[0]}"')
    for server in (spec.dns_config.nameservers if spec.dns_config is not None else None) or ():
        _check_address(server, f"invalid DNS address: {server}")


def _check_address(text: str, complaint: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        raise Invalid(complaint) from None


def signal_number(text: str) -> int:
    """`SIGTERM`, `term`, `15`, `RTMIN+3`. Raises Invalid."""
    plain = text.upper().removeprefix("SIG")
    if plain.isascii() and plain.isdigit() and 0 < int(plain) < 65:
        return int(plain)
    mark = "+" if "+" in plain else "-"
    base, sign, offset = plain.partition(mark)
    found = signal.Signals.__members__.get(f"SIG{base}")
    if found is not None and (not sign or (base in ("RTMIN", "RTMAX") and offset.isascii() and offset.isdigit())):
        number = int(found) + (int(offset) if sign == "+" else -int(offset) if sign else 0)
        if 0 < number < 65:
            return number
    raise Invalid(f"Invalid signal: {text}")


def check_ulimits(ulimits: Iterable[Ulimit]) -> None:
    for ulimit in ulimits:
        if ulimit.name not in ULIMITS:
            raise Invalid(f"invalid ulimit type: {ulimit.name}")
        if min(ulimit.soft, ulimit.hard) < -1 or (ulimit.hard != -1 and (ulimit.soft == -1 or ulimit.soft > ulimit.hard)):
            raise Invalid(f"ulimit soft limit must be less than or equal to hard limit: {ulimit.soft} > {ulimit.hard}")


def check_privileges(rights: Privileges) -> None:
    credential = rights.credential_spec
    if credential is not None and (credential.config or credential.file or credential.registry):
        raise NotImplementedHere("credential specs exist on Windows only")
    selinux = rights.selinux_context
    if selinux is not None and (selinux.user or selinux.role or selinux.type or selinux.level):
        raise NotImplementedHere("skep does not set SELinux labels: leave them out, or disable them")
    if rights.app_armor is not None and rights.app_armor.mode not in ("", "default", "disabled"):
        raise Invalid(f"unknown AppArmor mode {rights.app_armor.mode}")
    seccomp_profile(rights)


def seccomp_profile(rights: Privileges | None) -> str:
    """`default`, `unconfined`, or a profile's JSON."""
    asked = rights.seccomp if rights is not None else None
    if asked is None or asked.mode in ("", "default"):
        return "default"
    if asked.mode == "unconfined":
        return "unconfined"
    if asked.mode != "custom":
        raise Invalid(f"unknown seccomp mode {asked.mode}")
    try:
        return base64.b64decode(asked.profile, validate=True).decode()
    except ValueError as error:
        raise Invalid(f"seccomp profile is not base64 of JSON: {error}") from None


def check_health_test(health: Healthcheck) -> None:
    if health.test and health.test[0] not in HEALTH_TESTS:
        raise Invalid(f'Unknown healthcheck type "{health.test[0]}" (expected "NONE", "CMD", or "CMD-SHELL")')


def check_mounts(mounts: Iterable[Mount]) -> None:
    targets: set[str] = set()
    for mount in mounts:
        target = check_mount(mount)
        if target in targets:
            raise Invalid(f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(target)


def check_mount(mount: Mount) -> str:
    """Its target, normalised."""

    def wrong(text: str) -> Invalid:
        return Invalid(f'invalid mount config for type "{mount.type}": {text}')

    def absolute(path: str) -> None:
        if not path.startswith("/"):
            raise wrong(f"invalid mount path: '{path}' mount path must be absolute")

    unfit = _unfit(mount)
    if unfit is not None:
        raise unfit
    if not mount.target:
        raise wrong("field Target must not be empty")
    absolute(mount.target)
    target = posixpath.normpath(mount.target)
    if target in ("/", "//"):
        raise wrong("invalid specification: destination can't be '/'")
    options = {"bind": mount.bind_options, "volume": mount.volume_options, "tmpfs": mount.tmpfs_options}
    for kind, given in options.items():
        if given is not None and kind != mount.type:
            raise wrong(f"field {kind.capitalize()}Options must not be specified")
    if mount.type == "tmpfs" and mount.source:
        raise wrong("field Source must not be specified")
    if mount.type == "bind":
        if not mount.source:
            raise wrong("field Source must not be empty")
        absolute(mount.source)
        bind = mount.bind_options
        propagation = (bind.propagation if bind is not None else "") or "rprivate"
        if propagation not in PROPAGATIONS:
            raise wrong(f"invalid propagation mode: {propagation}")
        if bind is not None and bind.read_only_force_recursive and not (mount.read_only and propagation == "rprivate"):
            raise wrong('mount source must be read-only and its propagation "rprivate" with ReadOnlyForceRecursive')
    return target


def _unfit(mount: Mount) -> SkepError | None:
    if mount.type == "cluster":
        return NotImplementedHere("skep has no cluster volumes (CSI): use a volume or a bind mount")
    if mount.type == "image":
        return NotImplementedHere(f"mount {mount.target}: skep has no mounts of type image, use bind, volume or tmpfs")
    if mount.type == "npipe":
        return NotImplementedHere(f"mount {mount.target}: named pipes exist on Windows only")
    if mount.type not in ("bind", "volume", "tmpfs"):
        return Invalid(f'mount type unknown: "{mount.type}"')
    return None
