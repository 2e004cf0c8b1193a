"""What `docker info` and `docker version` say of this host: read from the engine, /proc and the platform when asked, nothing made up.

What skep has no counterpart for (live restore, plugins, containerd) is left out or empty, in the form that clients expect.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skep.api.state import API_VERSION, OLDEST_VERSION, skep_version, written
from skep.api.wire.times import stamp
from skep.clock import Clock
from skep.engine.base import Engine

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class Warnings:
    """Sentences for the end of `docker info`: what works less well on this host, and how to mend it."""

    def __init__(self, *sentences: str) -> None:
        self._sentences = dict.fromkeys(sentences)

    def add(self, sentence: str) -> None:
        self._sentences[sentence] = None

    def all(self) -> list[str]:
        return list(self._sentences)


class HostInfo:
    """The API's own `skep.api.context.NodeInfo`.

    `id` names the node for good; `hostname` is read anew each time unless given. `describe` may add or replace keys of /info.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        *,
        id: str,
        root: str,
        hostname: str = "",
        labels: Mapping[str, str] | None = None,
        insecure_registries: Sequence[str] = (),
        mirrors: Sequence[str] = (),
        warnings: Warnings | None = None,
        debug: bool = False,
        describe: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._id = id
        self._root = root
        self._hostname = hostname
        self._labels = dict(labels or {})
        self._insecure = tuple(insecure_registries)
        self._mirrors = tuple(mirrors)
        self.warnings = warnings or Warnings()
        self._debug = debug
        self._describe = describe
        self._machine = platform.machine()
        self._kernel = platform.release()
        self._system = _os_release()

    def info(self) -> dict[str, Any]:
        """Every field, in one place: it reads longer than it is."""
        engine = self._engine.describe()
        runtime = _text(engine, "runtime")
        shown: dict[str, Any] = {"ID": self._id}
        shown |= self._counts()
        shown |= {
            "Driver": _text(engine, "storage_driver", "overlay2"),
            "DriverStatus": _pairs(engine.get("storage_status")),
            "Plugins": {
                "Volume": ["local"],
                "Network": ["bridge", "host", "null", "overlay"],
                "Authorization": None,
                "Log": ["json-file", "local", "none"],
            },
            "MemoryLimit": True,
            "SwapLimit": bool(engine.get("swap_limit", True)),
            "CpuCfsPeriod": True,
            "CpuCfsQuota": True,
            "CPUShares": True,
            "CPUSet": True,
            "PidsLimit": True,
            "IPv4Forwarding": _first_line("/proc/sys/net/ipv4/ip_forward") == "1",
            "Debug": self._debug,
            "NFd": _open_files(),
            "OomKillDisable": False,
            "NGoroutines": 0,
            "SystemTime": stamp(self._clock.now()),
            "LoggingDriver": "json-file",
            "CgroupDriver": _text(engine, "cgroup_driver", "cgroupfs"),
            "CgroupVersion": _text(engine, "cgroup_version", "2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "1"),
            "NEventsListener": 0,
            "KernelVersion": self._kernel,
            "OperatingSystem": self._system[0],
            "OSVersion": self._system[1],
            "OSType": "linux",
            "Architecture": self._machine,
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": self._registries(),
            "NCPU": _cpus(),
            "MemTotal": _memory(),
            "GenericResources": None,
            "DockerRootDir": self._root,
            "HttpProxy": _without_password(os.environ.get("HTTP_PROXY", "")),
            "HttpsProxy": _without_password(os.environ.get("HTTPS_PROXY", "")),
            "NoProxy": os.environ.get("NO_PROXY", ""),
            "Name": self._name(),
            "Labels": [f"{name}={value}" for name, value in sorted(self._labels.items())],
            "ExperimentalBuild": False,
            "ServerVersion": skep_version(),
            "Runtimes": {runtime: _runtime(engine)} if runtime else {},
            "DefaultRuntime": runtime,
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": _text(engine, "init"),
            "ContainerdCommit": {"ID": ""},
            "RuncCommit": {"ID": _text(engine, "runtime_version")},
            "InitCommit": {"ID": ""},
            "SecurityOptions": [str(option) for option in engine.get("security_options") or ()],
            "Warnings": self.warnings.all() or None,
        }
        if self._describe is not None:
            shown |= self._describe()
        return shown

    def _name(self) -> str:
        return self._hostname or socket.gethostname()

    def _counts(self) -> dict[str, int]:
        containers = self._engine.all()
        running = sum(1 for c in containers if c.running and not c.paused)
        paused = sum(1 for c in containers if c.running and c.paused)
        return {
            "Containers": len(containers),
            "ContainersRunning": running,
            "ContainersPaused": paused,
            "ContainersStopped": len(containers) - running - paused,
            "Images": len(self._engine.images.all()),
        }

    def _registries(self) -> dict[str, Any]:
        index = {"docker.io": {"Mirrors": list(self._mirrors), "Name": "docker.io", "Official": True, "Secure": True}}
        index |= {name: {"Mirrors": [], "Name": name, "Official": False, "Secure": False} for name in self._insecure if "/" not in name}
        ranges = [name for name in self._insecure if "/" in name]
        return {
            "IndexConfigs": index,
            "InsecureRegistryCIDRs": [*ranges, "::1/128", "127.0.0.0/8"],
            "Mirrors": list(self._mirrors) or None,
        }

    def version(self) -> dict[str, Any]:
        engine = self._engine.describe()
        mine = skep_version()
        arch = _ARCHITECTURES.get(self._machine, self._machine)
        python = f"python{platform.python_version()}"
        details = {
            "ApiVersion": written(API_VERSION),
            "Arch": arch,
            "BuildTime": "",
            "Experimental": "false",
            "GitCommit": "",
            "GoVersion": python,
            "KernelVersion": self._kernel,
            "MinAPIVersion": written(OLDEST_VERSION),
            "Os": "linux",
        }
        components: list[dict[str, Any]] = [{"Name": "Engine", "Version": mine, "Details": details}]
        if runtime := _text(engine, "runtime"):
            components.append({"Name": runtime, "Version": _text(engine, "runtime_version"), "Details": {"GitCommit": ""}})
        return {
            "Platform": {"Name": "skep"},
            "Components": components,
            "Version": mine,
            "ApiVersion": written(API_VERSION),
            "MinAPIVersion": written(OLDEST_VERSION),
            "GitCommit": "",
            "GoVersion": python,
            "Os": "linux",
            "Arch": arch,
            "KernelVersion": self._kernel,
            "BuildTime": "",
        }


def _text(described: Mapping[str, Any], name: str, default: str = "") -> str:
    value = described.get(name)
    return default if value is None else str(value)


def _runtime(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Path, and in `status` why this runtime was chosen."""
    status = {f"skep.{name}": str(engine[name]) for name in ("runtime_why", "seccomp_compiled") if name in engine}
    return {"path": _text(engine, "runtime_path", _text(engine, "runtime"))} | ({"status": status} if status else {})


def _pairs(value: Any) -> list[list[str]] | None:
    if isinstance(value, Mapping):
        return [[str(name), str(item)] for name, item in value.items()]
    return None


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return ""


def _os_release() -> tuple[str, str]:
    """(pretty name, version id) of os-release(5)."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8") as file:
                pairs = [line.strip().partition("=") for line in file if "=" in line]
        except OSError:
            continue
        values = {name: value.strip("\"'") for name, _, value in pairs}
        return values.get("PRETTY_NAME", "Linux"), values.get("VERSION_ID", "")
    return "Linux", ""


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def _without_password(url: str) -> str:
    """Proxies may be given with a password, which is nobody's business."""
    scheme, mark, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{mark}xxxxx:xxxxx@{host}" if at and user else url
