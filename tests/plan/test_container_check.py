"""What a container's spec may say: said when the service is made, not when its first task is prepared."""

from __future__ import annotations

from typing import Any

import pytest

from skep.errors import SkepError
from skep.manager.control_validate import check_service
from skep.model import spec as s
from skep.plan.container import check_container

IN = "rpc error: code = InvalidArgument desc = "
REL = "mount path must be absolute"


def service(labels: dict[str, str] | None = None, **container: Any) -> s.ServiceSpec:
    template = s.TaskSpec(container_spec=s.ContainerSpec(image="web:1", **container))
    return s.ServiceSpec(name="web", labels=labels or {}, task_template=template, mode=s.Mode(replicated=s.Replicated(replicas=1)))


def mount(type: str = "volume", target: str = "/x", **more: Any) -> dict[str, Any]:
    return {"mounts": (s.Mount(type=type, target=target, **more),)}


GOOD: list[dict[str, Any]] = [
    {"env": ("A=1", "B", "C={{.Task.Slot}}", "D={{.Service.Labels.tier}}"), "hostname": "{{.Service.Name}}-{{.Node.Hostname}}"},
    {"dir": "/w", "stop_signal": "SIGRTMIN+3", "stop_grace_period": 0, "oom_score_adj": -1000, "isolation": "default"},
    {
        "ulimits": (
            s.Ulimit(name="nofile", soft=1, hard=2),
            s.Ulimit(name="core", soft=-1, hard=-1),
            s.Ulimit(name="nproc", soft=5, hard=-1),
        )
    },
    {"sysctls": {"net.ipv4.conf.eth0/1.forwarding": "1", "kernel.msgmax": "1"}, "hosts": ("1.2.3.4 a b", "::1 c")},
    {"dns_config": s.DNSConfig(nameservers=("1.1.1.1", "fd00::1"), search=(".",), options=("ndots:1",))},
    {"privileges": s.Privileges(seccomp=s.SeccompOpts(mode="custom", profile="e30="), app_armor=s.AppArmorOpts(mode="disabled"))},
    {"privileges": s.Privileges(selinux_context=s.SELinuxContext(disable=True), no_new_privileges=True)},
    {"healthcheck": s.Healthcheck(test=("CMD-SHELL", "true"))},
    mount(source="v", target="/{{.Task.Slot}}"),
    mount(source="", volume_options=s.VolumeOptions(no_copy=True)),
    mount("tmpfs", tmpfs_options=s.TmpfsOptions(size_bytes=1)),
    mount("bind", source="/no/such/{{.Task.ID}}", bind_options=s.BindOptions(propagation="rslave")),
    mount("bind", source="/s", read_only=True, bind_options=s.BindOptions(read_only_force_recursive=True)),
]


@pytest.mark.parametrize("container", GOOD, ids=str)
def test_taken(container: dict[str, Any]) -> None:
    check_service(service({"tier": "front"}, **container))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"env": ("=x",)}, "invalid environment variable: =x"),
    ({"env": ("",)}, "invalid environment variable: "),
    ({"args": ("a\0b",)}, "invalid argument: 'a\\x00b' holds a zero byte"),
    ({"env": ("A={{.Nope}}",)}, f"{IN}expanding env failed: template: expansion:1"),
    ({"env": ("A={{.Service.Labels.tier}}",)}, f"{IN}expanding env failed: template: expansion:1"),
    ({"hostname": "{{if .Task.Slot}}x{{end}}"}, f"{IN}expanding hostname failed: "),
    ({"hostname": "a b"}, "invalid hostname format: a b"),
    ({"dir": "rel"}, "the working directory 'rel' is invalid, it needs to be an absolute path"),
    ({"stop_signal": "NOPE"}, "Invalid signal: NOPE"),
    ({"stop_signal": "0"}, "Invalid signal: 0"),
    ({"stop_grace_period": -1}, "ContainerSpec: StopGracePeriod cannot be negative"),
    ({"oom_score_adj": 1001}, "Invalid value 1001, range for oom score adj is [-1000, 1000]"),
    ({"isolation": "hyperv"}, "isolation hyperv exists on Windows only"),
    ({"hosts": ("1.2.3.4",)}, 'bad format for add-host: "1.2.3.4"'),
    ({"hosts": ("host-gateway db",)}, 'invalid IP address in add-host: "host-gateway"'),
    ({"dns_config": s.DNSConfig(nameservers=("here",))}, "invalid DNS address: here"),
    ({"ulimits": (s.Ulimit(name="files", soft=1, hard=1),)}, "invalid ulimit type: files"),
    ({"ulimits": (s.Ulimit(name="nofile", soft=3, hard=2),)}, "ulimit soft limit must be less than or equal to hard limit: 3 > 2"),
    ({"ulimits": (s.Ulimit(name="nofile", soft=-1, hard=2),)}, "ulimit soft limit must be less than or equal to hard limit: -1 > 2"),
    ({"ulimits": (s.Ulimit(name="nofile", soft=-7, hard=-7),)}, "ulimit soft limit must be"),
    ({"sysctls": {"../x": "1"}}, "invalid sysctl: ../x"),
    ({"healthcheck": s.Healthcheck(test=("SHELL", "x"))}, 'Unknown healthcheck type "SHELL" (expected "NONE", "CMD", or "CMD-SHELL")'),
    ({"privileges": s.Privileges(credential_spec=s.CredentialSpec(registry="x"))}, "credential specs exist on Windows only"),
    ({"privileges": s.Privileges(selinux_context=s.SELinuxContext(level="s0"))}, "skep does not set SELinux labels"),
    ({"privileges": s.Privileges(app_armor=s.AppArmorOpts(mode="mine"))}, "unknown AppArmor mode mine"),
    ({"privileges": s.Privileges(seccomp=s.SeccompOpts(mode="odd"))}, "unknown seccomp mode odd"),
    ({"privileges": s.Privileges(seccomp=s.SeccompOpts(mode="custom", profile="%"))}, "seccomp profile is not base64 of JSON"),
    (mount("nfs"), 'invalid MountType: "nfs"'),
    (mount("image", source="web:1"), "mount /x: skep has no mounts of type image, use bind, volume or tmpfs"),
    (mount("npipe"), "mount /x: named pipes exist on Windows only"),
    (mount("cluster"), "skep has no cluster volumes (CSI): use a volume or a bind mount"),
    (mount(target=""), 'invalid mount config for type "volume": field Target must not be empty'),
    (mount(target="x"), f"invalid mount config for type \"volume\": invalid mount path: 'x' {REL}"),
    (mount(target="/y/.."), "destination can't be '/'"),
    (mount("bind"), 'invalid mount config for type "bind": field Source must not be empty'),
    (mount("bind", source="{{.Task.Slot}}"), f"invalid mount path: '1' {REL}"),
    (mount("bind", source="/a", bind_options=s.BindOptions(propagation="odd")), "invalid propagation mode: odd"),
    (mount("bind", source="/a", bind_options=s.BindOptions(read_only_force_recursive=True)), "mount source must be read-only"),
    (mount("bind", source="/a", tmpfs_options=s.TmpfsOptions()), "field TmpfsOptions must not be specified"),
    (mount("tmpfs", source="/a"), "field Source must not be specified"),
    ({"mounts": (s.Mount(type="tmpfs", target="/x"), s.Mount(type="tmpfs", target="/x"))}, f"{IN}ContainerSpec: duplicate mount point: /x"),
    ({"mounts": (s.Mount(type="tmpfs", target="/x"), s.Mount(type="tmpfs", target="/y/../x"))}, "duplicate mount point: /y/../x"),
]


@pytest.mark.parametrize(("container", "said"), BAD, ids=str)
def test_refused(container: dict[str, Any], said: str) -> None:
    with pytest.raises(SkepError) as refused:
        check_service(service(**container))
    message = refused.value.message
    assert message.startswith(said) if said.startswith(("rpc", "invalid environment")) else said in message
    assert "\n" not in message and refused.value.status in (400, 501)


def test_the_node_sees_the_real_host_name() -> None:
    check_container(s.ContainerSpec(hostname="x" * 64))
    with pytest.raises(SkepError, match="invalid hostname format"):
        check_container(s.ContainerSpec(hostname="x" * 65))
