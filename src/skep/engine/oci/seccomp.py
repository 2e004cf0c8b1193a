"""The seccomp profile of a container: from the containers-common form (as Docker and Podman write it) to the OCI one. Pure.

The shipped profile, seccomp.json, is that of github.com/containers/common (Apache-2.0, see NOTICE). Its rules depend on the capabilities a
container has, the machine and the kernel; the OCI form, and the compiled filter (bpf.py), have none of these questions left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from skep.errors import Invalid

_GOARCH = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "armv6l": ("arm", "SCMP_ARCH_ARM"),
    "i686": ("386", "SCMP_ARCH_X86"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
}


_ADMIN = (
    "bpf", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree",
    "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "syslog", "umount", "umount2", "unshare",
)  # fmt: skip
_NEVER = ("add_key", "keyctl", "pivot_root", "request_key")
_NEW_NAMESPACES = 0x7E020000
_EPERM, _ENOSYS = 1, 38


def tightened(profile: Mapping[str, Any]) -> dict[str, Any]:
    """The shipped profile without what Podman allows and Docker does not: new namespaces and mounts without CAP_SYS_ADMIN (a user
    namespace would give a process all capabilities in it, and with them most of the kernel's attack surface), keyrings, reboot.
    """
    moved = {*_ADMIN, *_NEVER, "clone", "reboot"}
    rules = []
    for rule in profile["syscalls"]:
        names = [name for name in rule["names"] if name not in moved]
        if names:
            rules.append({**rule, "names": names})
    admin, boot = {"caps": ["CAP_SYS_ADMIN"]}, {"caps": ["CAP_SYS_BOOT"]}
    flags = {"value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    denied = [name for name in _ADMIN if name != "clone3"]
    rules += [
        {"names": [*_ADMIN, "clone"], "action": "SCMP_ACT_ALLOW", "includes": admin},
        {"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM, "excludes": admin},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS, "excludes": admin},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, **flags}], "excludes": {**admin, "arches": ["s390x"]}},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 1, **flags}],
            "includes": {"arches": ["s390x"]},
            "excludes": admin,
        },
        {"names": ["reboot"], "action": "SCMP_ACT_ALLOW", "includes": boot},
        {"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM, "excludes": boot},
        {"names": list(_NEVER), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
    ]
    return {**profile, "syscalls": rules}


def kernel_version(release: str) -> tuple[int, int]:
    """`6.1.0-13-amd64` -> (6, 1)."""
    parts = release.split("-")[0].split(".")
    try:
        return int(parts[0]), int(parts[1]) if len(parts) > 1 else 0
    except ValueError:
        return 0, 0


def oci_profile(profile: Mapping[str, Any], capabilities: Collection[str], machine: str, kernel: str) -> dict[str, Any]:
    """`linux.seccomp` of the OCI spec. Raises Invalid for what is no seccomp profile."""
    try:
        return _convert(profile, frozenset(capabilities), machine, kernel_version(kernel))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Invalid(f"invalid seccomp profile: {error!r}") from None


def _convert(profile: Mapping[str, Any], capabilities: frozenset[str], machine: str, kernel: tuple[int, int]) -> dict[str, Any]:
    goarch, native = _GOARCH.get(machine, (machine, ""))
    out: dict[str, Any] = {"defaultAction": profile["defaultAction"]}
    if profile.get("defaultErrnoRet") is not None:
        out["defaultErrnoRet"] = int(profile["defaultErrnoRet"])
    architectures = list(profile.get("architectures") or ())
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            architectures = [native, *(entry.get("subArchitectures") or ())]
    if architectures:
        out["architectures"] = architectures
    if profile.get("flags"):
        out["flags"] = list(profile["flags"])
    rules = []
    for rule in profile.get("syscalls") or ():
        if not _applies(rule, capabilities, goarch, kernel):
            continue
        names = list(rule.get("names") or ([rule["name"]] if rule.get("name") else ()))
        new: dict[str, Any] = {"names": [str(name) for name in names], "action": str(rule["action"])}
        if rule.get("errnoRet") is not None and new["action"] in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
            new["errnoRet"] = int(rule["errnoRet"])
        if rule.get("args"):
            new["args"] = [
                {"index": int(a["index"]), "value": int(a["value"]), "valueTwo": int(a.get("valueTwo") or 0), "op": str(a["op"])}
                for a in rule["args"]
            ]
        rules.append(new)
    out["syscalls"] = rules
    return out


def _applies(rule: Mapping[str, Any], capabilities: frozenset[str], goarch: str, kernel: tuple[int, int]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if includes.get("arches") and goarch not in includes["arches"]:
        return False
    if goarch in (excludes.get("arches") or ()):
        return False
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    if not capabilities.isdisjoint(excludes.get("caps") or ()):
        return False
    if includes.get("minKernel") and kernel < kernel_version(includes["minKernel"]):
        return False
    return not (excludes.get("minKernel") and kernel >= kernel_version(excludes["minKernel"]))
