"""Every flag of `docker service create` that concerns the container: it has its effect inside, and service, task and container show it.
All services are made at once; what skep refuses is refused before anything is made, what a node cannot do is said by its task."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import ECHO, World

from skep.local import nodes

SEC = 1_000_000_000
STATUS = "cat /proc/self/status"
LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

# flags (@ stands between them and the arguments of the container), what runs inside, what it must print (a regular expression),
# where the container's inspect shows it and as what, where the task's spec (and so the service's) does and as what
FLAGS: list[tuple[str, str, str, str, Any, str, Any]] = [
    ("@ 8099", "cat /proc/1/cmdline", r"\b8099\b", "Config.Cmd", ["8099"], "ContainerSpec.Args", ["8099"]),
    ("--entrypoint 'sleep 1000'", "cat /proc/1/cmdline", r"^sleep\0", "Config.Entrypoint", ["sleep", "1000"],
     "ContainerSpec.Command", ["sleep", "1000"]),
    ("--entrypoint sleep @ 1001", "cat /proc/1/cmdline", r"^sleep\0001001", "Path", "sleep", "ContainerSpec.Args", ["1001"]),
    ("--cap-add NET_ADMIN", "ip addr add 192.0.2.9/32 dev lo && echo can", r"can", "HostConfig.CapAdd", ["CAP_NET_ADMIN"],
     "ContainerSpec.CapabilityAdd", ["CAP_NET_ADMIN"]),
    ("--cap-drop ALL", STATUS, r"CapBnd:\t0000000000000000", "HostConfig.CapDrop", ["ALL"], "ContainerSpec.CapabilityDrop", ["ALL"]),
    ("--container-label a=b", "true", "", "Config.Labels.a", "b", "ContainerSpec.Labels", {"a": "b"}),
    ("--dns 192.0.2.1", "cat /etc/resolv.conf", r"nameserver 127\.0\.0\.11", "HostConfig.Dns", ["192.0.2.1"],
     "ContainerSpec.DNSConfig.Nameservers", ["192.0.2.1"]),
    ("--dns-search a.b", "cat /etc/resolv.conf", r"search a\.b\n", "HostConfig.DnsSearch", ["a.b"],
     "ContainerSpec.DNSConfig.Search", ["a.b"]),
    ("--dns-option ndots:3", "cat /etc/resolv.conf", r"options ndots:3\n", "HostConfig.DnsOptions", ["ndots:3"],
     "ContainerSpec.DNSConfig.Options", ["ndots:3"]),
    ("-e A=1 -e 'B={{.Task.Name}}' -e C={{.Service.Labels.tier}} --label tier=front", "env",
     r"(?s)(?=.*\bA=1\n)(?=.*\bB=NAME\.1\.\w{25}\n)(?=.*\bC=front\n)",
     "Config.Env", r".*'A=1', 'B=NAME\.1\.\w{25}', 'C=front'\]",
     "ContainerSpec.Env", ["A=1", "B={{.Task.Name}}", "C={{.Service.Labels.tier}}"]),
    ("--env-file %TMP%/env -e VAR1=C", "env", r"(?s)(?=.*VAR1=C\n)(?!.*VAR1=A)(?=.*VAR3=x y\n)", "Config.Env", r".*'VAR1=C'.*",
     "ContainerSpec.Env", ["VAR3=x y", "VAR1=C"]),
    ("--group nogroup --group 777", "id -G", r"^0 777 65534\n", "HostConfig.GroupAdd", ["nogroup", "777"],
     "ContainerSpec.Groups", ["nogroup", "777"]),
    ("--health-cmd true --health-interval 300ms --health-retries 4 --health-timeout 2s --health-start-period 1s"
     " --health-start-interval 100ms",
     "true", "", "State.Health.Status", "healthy", "ContainerSpec.Healthcheck",
     {"Test": ["CMD-SHELL", "true"], "Interval": 3 * SEC // 10, "Timeout": 2 * SEC, "StartPeriod": SEC, "StartInterval": SEC // 10,
      "Retries": 4}),
    ("--no-healthcheck", "true", "", "Config.Healthcheck.Test", ["NONE"], "ContainerSpec.Healthcheck.Test", ["NONE"]),
    ("--host db:1.2.3.4", "cat /etc/hosts", r"1\.2\.3\.4\tdb\n", "HostConfig.ExtraHosts", ["db:1.2.3.4"],
     "ContainerSpec.Hosts", ["1.2.3.4 db"]),
    ("--hostname '{{.Service.Name}}-{{.Task.Slot}}-{{.Node.Hostname}}'", "hostname; cat /etc/hosts",
     r"(?s)^NAME-1-(manager|worker0\d)\n.*\tNAME-1-\1", "Config.Hostname", r"NAME-1-(manager|worker0\d)",
     "ContainerSpec.Hostname", "{{.Service.Name}}-{{.Task.Slot}}-{{.Node.Hostname}}"),
    ("--init", "cat /proc/1/cmdline", r"init", "HostConfig.Init", True, "ContainerSpec.Init", True),
    ("--init=false", "cat /proc/1/cmdline", r"serve", "HostConfig.Init", False, "ContainerSpec.Init", False),
    ("--isolation default", "true", "", "HostConfig.Isolation", "default", "ContainerSpec.Isolation", "default"),
    ("--limit-cpu 0.5", "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null", r"^50000",
     "HostConfig.NanoCpus", 500_000_000, "Resources.Limits.NanoCPUs", 500_000_000),
    ("--limit-memory 64m", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null", r"67108864",
     "HostConfig.Memory", 64 << 20, "Resources.Limits.MemoryBytes", 64 << 20),
    ("--limit-memory 32m", "true", "", "HostConfig.MemorySwap", 64 << 20, "Resources.Limits.MemoryBytes", 32 << 20),
    ("--limit-pids 33", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null", r"^33", "HostConfig.PidsLimit", 33,
     "Resources.Limits.Pids", 33),
    ("--reserve-memory 32m --reserve-cpu 0.1",
     "cat /sys/fs/cgroup/memory/memory.soft_limit_in_bytes /sys/fs/cgroup/memory.low 2>/dev/null", r"33554432",
     "HostConfig.MemoryReservation", 32 << 20, "Resources.Reservations", {"NanoCPUs": 100_000_000, "MemoryBytes": 32 << 20}),
    ("--log-driver json-file --log-opt max-size=1m --log-opt max-file=2", "true", "", "HostConfig.LogConfig",
     {"Type": "json-file", "Config": {"max-file": "2", "max-size": "1m"}}, "LogDriver",
     {"Name": "json-file", "Options": {"max-file": "2", "max-size": "1m"}}),
    ("--log-driver local", "true", "", "HostConfig.LogConfig.Type", "local", "LogDriver", {"Name": "local"}),
    ("--log-driver none", "true", "", "HostConfig.LogConfig.Type", "none", "LogDriver", {"Name": "none"}),
    ("--mode global", "true", "", "Name", r"/NAME\.\w{25}\.\w{25}", "ForceUpdate", 0),
    ("--mount type=bind,src=/run,dst=/m", "grep -c ' /m/' /proc/self/mountinfo", r"^[1-9]", "HostConfig.Mounts",
     [{"Type": "bind", "Source": "/run", "Target": "/m"}],
     "ContainerSpec.Mounts", [{"Type": "bind", "Source": "/run", "Target": "/m"}]),
    ("--mount type=bind,src=/run,dst=/m,readonly", "touch /m/x /m/skep/x 2>&1", r"(?s)/m/x: Read-only.*/m/skep/x: Read-only",
     "Mounts.0", {"Type": "bind", "Source": "/run", "Destination": "/m", "Mode": "", "RW": False, "Propagation": "rprivate"},
     "ContainerSpec.Mounts.0.ReadOnly", True),
    ("--mount type=bind,src=/run,dst=/m,readonly,bind-recursive=writable", "touch /m/x 2>&1; grep ' /m/skep ' /proc/self/mountinfo",
     r"(?s)/m/x: Read-only.* /m/skep rw", "Mounts.0.RW", False, "ContainerSpec.Mounts.0.BindOptions", {"ReadOnlyNonRecursive": True}),
    ("--mount type=bind,src=/run,dst=/m,readonly,bind-recursive=readonly,bind-propagation=rprivate",
     "grep ' /m/skep ' /proc/self/mountinfo", r" /m/skep ro", "Mounts.0.RW", False,
     "ContainerSpec.Mounts.0.BindOptions.ReadOnlyForceRecursive", True),
    ("--mount type=bind,src=/run,dst=/m,bind-nonrecursive", "grep -c ' /m/' /proc/self/mountinfo", r"^0",
     "HostConfig.Mounts.0.BindOptions", {"NonRecursive": True}, "ContainerSpec.Mounts.0.BindOptions", {"NonRecursive": True}),
    ("--mount type=bind,src=/run/skep,dst=/m,bind-propagation=rslave", "grep ' /m ' /proc/self/mountinfo", r"master:",
     "Mounts.0.Propagation", "rslave", "ContainerSpec.Mounts.0.BindOptions", {"Propagation": "rslave"}),
    ("--mount type=volume,src=NAME,dst=/m,volume-label=a=b", "touch /m/x && mount", r" on /m ", "Mounts.0.Name", "NAME",
     "ContainerSpec.Mounts.0.VolumeOptions.Labels", {"a": "b"}),
    ("--mount type=volume,dst=/usr/local/bin", "ls /usr/local/bin", r"serve", "Mounts.0.Name", r"[0-9a-f]{64}",
     "ContainerSpec.Mounts.0", {"Type": "volume", "Target": "/usr/local/bin"}),
    ("--entrypoint 'sleep 1000' --mount type=volume,dst=/usr/local/bin,volume-nocopy", "ls -A /usr/local/bin | wc -l", r"^0\n",
     "Mounts.0.Type", "volume", "ContainerSpec.Mounts.0.VolumeOptions.NoCopy", True),
    ("--mount 'type=volume,src=NAME-{{.Task.Slot}},dst=/s{{.Task.Slot}},ro'", "touch /s1/x 2>&1", r"Read-only", "Mounts.0.Name", "NAME-1",
     "ContainerSpec.Mounts.0", {"Type": "volume", "Source": "NAME-{{.Task.Slot}}", "Target": "/s{{.Task.Slot}}", "ReadOnly": True}),
    ("--constraint node.role==manager --mount type=volume,src=flagparts,dst=/m,volume-subpath=part/deep", "ls /m", r"^here\n",
     "HostConfig.Mounts.0.VolumeOptions.Subpath", "part/deep", "ContainerSpec.Mounts.0.VolumeOptions.Subpath", "part/deep"),
    ("--mount type=volume,src=NAME,dst=/m,volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=1m",
     "mount | grep ' /m '", r"tmpfs on /m .*size=1024k", "Mounts.0.Driver", "local",
     "ContainerSpec.Mounts.0.VolumeOptions.DriverConfig",
     {"Name": "local", "Options": {"device": "tmpfs", "o": "size=1m", "type": "tmpfs"}}),
    ("--mount type=tmpfs,dst=/m,tmpfs-size=1m,tmpfs-mode=700", "mount | grep ' /m '; stat -c %a /m", r"size=1024k.*\n700",
     "Mounts.0.Type", "tmpfs", "ContainerSpec.Mounts.0.TmpfsOptions", {"SizeBytes": 1 << 20, "Mode": 0o700}),
    ("--network host", "true", "", "HostConfig.NetworkMode", "host", "Networks.0.Target", "host"),
    ("--network bridge", "ip addr", r"172\.17\.\d+\.\d+/16", "NetworkSettings.Networks.bridge.IPPrefixLen", 16,
     "Networks.0.Target", "bridge"),
    ("--oom-score-adj 321", "cat /proc/1/oom_score_adj", r"^321", "HostConfig.OomScoreAdj", 321, "ContainerSpec.OomScoreAdj", 321),
    ("--publish mode=host,target=8080,published=18181", "true", "", "HostConfig.PortBindings",
     {"8080/tcp": [{"HostIp": "", "HostPort": "18181"}]}, "ForceUpdate", 0),
    ("--read-only", "touch /x 2>&1; touch /dev/shm/x && echo shm", r"Read-only file system\n.*shm", "HostConfig.ReadonlyRootfs", True,
     "ContainerSpec.ReadOnly", True),
    ("--stop-signal USR1", "true", "", "Config.StopSignal", "USR1", "ContainerSpec.StopSignal", "USR1"),
    ("--stop-grace-period 3s", "true", "", "Config.StopTimeout", 3, "ContainerSpec.StopGracePeriod", 3 * SEC),
    ("--sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward", r"^1", "HostConfig.Sysctls", {"net.ipv4.ip_forward": "1"},
     "ContainerSpec.Sysctls", {"net.ipv4.ip_forward": "1"}),
    ("--sysctl kernel.msgmax=9000", "cat /proc/sys/kernel/msgmax", r"^9000", "HostConfig.Sysctls", {"kernel.msgmax": "9000"},
     "ContainerSpec.Sysctls", {"kernel.msgmax": "9000"}),
    ("-t", "readlink /proc/1/fd/0", r"/dev/(pts/\d|console)", "Config.Tty", True, "ContainerSpec.TTY", True),
    ("--ulimit nofile=100:200", "ulimit -n; ulimit -Hn", r"^100\n200", "HostConfig.Ulimits", [{"Name": "nofile", "Hard": 200, "Soft": 100}],
     "ContainerSpec.Ulimits", [{"Name": "nofile", "Hard": 200, "Soft": 100}]),
    (f"--ulimit nofile=100:{LIMIT + 5}", "ulimit -n; ulimit -Hn", rf"^100\n{LIMIT}\n", "HostConfig.Ulimits.0.Hard", LIMIT + 5,
     "ContainerSpec.Ulimits.0.Hard", LIMIT + 5),
    ("-u nobody", "id -un", r"^nobody", "Config.User", "nobody", "ContainerSpec.User", "nobody"),
    ("-u 5:6", "id -u; id -g", r"^5\n6", "Config.User", "5:6", "ContainerSpec.User", "5:6"),
    ("-w /new/dir", "pwd", r"^/new/dir", "Config.WorkingDir", "/new/dir", "ContainerSpec.Dir", "/new/dir"),
    ("--with-registry-auth", "true", "", "State.Running", True, "ContainerSpec.Init", False),
]  # fmt: skip

# refused when the service is made: (flags, the sentence)
REFUSED = [
    ("--isolation hyperv", "isolation hyperv exists on Windows only"),
    ("--credential-spec file://x", "credential specs exist on Windows only"),
    ("--hostname 'a b'", "invalid hostname format: a b"),
    ("--hostname '{{.Nope}}'", "expanding hostname failed: template: expansion:1"),
    ("-e 'A={{if .Task.Slot}}x{{end}}'", "expanding env failed: template: expansion:1"),
    ("--mount type=image,src=x,dst=/m", "skep has no mounts of type image"),
    ("--mount type=npipe,src=x,dst=/m", "named pipes exist on Windows only"),
    ("--mount type=cluster,src=x,dst=/m", "skep has no cluster volumes"),
    ("--mount type=volume,src=v,dst=rel", "invalid mount path: 'rel' mount path must be absolute"),
    ("--oom-score-adj 3000", "range for oom score adj is [-1000, 1000]"),
    ("--stop-signal NOPE", "Invalid signal: NOPE"),
    ("-w rel", "the working directory 'rel' is invalid, it needs to be an absolute path"),
    ("--label skep.privileged=true", "may not be privileged (label skep.privileged): allow it with skep swarm update"),
    ("--label skep.devices=/dev/fuse", "may not have devices of its node (label skep.devices): allow it with skep swarm update"),
]

# what only a node can tell: (flags, the task's error)
REJECTED = [
    ("--cap-add nosuch", 'unknown capability: "CAP_NOSUCH"'),
    ("--generic-resource gpu=1", "no suitable node (insufficient resources on 4 nodes)"),
    ("--group nosuch", "unable to find group nosuch"),
    ("--log-driver syslog", "no suitable node (missing plugin on 4 nodes)"),
    ("--log-driver json-file --log-opt colour=red", "unknown log opt 'colour' for json-file log driver"),
    ("--mount type=bind,src=/no/such,dst=/m", 'invalid mount config for type "bind": bind source path does not exist: /no/such'),
    ("--mount type=volume,src=v,dst=/m,volume-driver=nosuch", "no suitable node (missing plugin on 4 nodes)"),
    ("--network host --sysctl net.ipv4.ip_forward=1", "sysctl 'net.ipv4.ip_forward' is not allowed in the host network namespace"),
    ("--sysctl kernel.panic=1", "kernel.panic"),
    ("-u nosuch", "unable to find user nosuch"),
]


def value_at(shown: Any, path: str) -> Any:
    for part in path.split("."):
        shown = shown[int(part)] if isinstance(shown, list) else shown[part]
    return shown


class Made:
    """All services of the tables, and what has become of them."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.answers: dict[str, subprocess.CompletedProcess[str]] = {}
        self.hosts = {node["ID"]: node["Description"]["Hostname"] for node in world.api("GET", "/nodes")}
        self.all = [row[0] for row in FLAGS] + [row[0] for row in REFUSED] + [row[0] for row in REJECTED]

    def name(self, flags: str) -> str:
        return f"flag{self.all.index(flags)}"

    def create(self, flags: str) -> None:
        name = self.name(flags)
        before, _, after = flags.partition("@")
        before = before.replace("%TMP%", str(self.folder)).replace("NAME", name)
        quick = [] if "--stop-grace" in flags else ["--stop-grace-period", "100ms"]
        socket = f"unix://{self.world.at.socket('manager')}"
        command = [self.world.program, "-H", socket, "service", "create", "-d", "--name", name, "--restart-condition", "none", *quick]
        command += [*shlex.split(before), ECHO, *shlex.split(after)]
        self.answers[flags] = subprocess.run(command, capture_output=True, text=True, timeout=60)

    def tasks(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        services = {service["ID"]: service["Spec"]["Name"] for service in self.world.api("GET", "/services")}
        for task in self.world.api("GET", "/tasks"):
            found.setdefault(services.get(task["ServiceID"], ""), []).append(task)
        return found

    def settled(self) -> bool:
        tasks = self.tasks()
        running = all(
            tasks.get(self.name(row[0]), [{}])[0].get("Status", {}).get("State") in ("running", "rejected", "failed") for row in FLAGS
        )
        return running and all(tasks.get(self.name(row[0]), [{}])[0].get("Status", {}).get("Err") for row in REJECTED)


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("flags")
    (folder / "env").write_text("VAR1=A\nVAR2\nVAR3=x y\n# no\n")
    world.docker("pull", "-q", ECHO)
    world.docker("run", "--rm", "-v", "flagparts:/v", "--entrypoint", "sh", ECHO, "-c", "mkdir -p /v/part/deep; touch /v/part/deep/here")
    found = Made(world, folder)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(found.create, found.all))
        world.until(found.settled, "all services are as far as they come")
        yield found
    finally:
        names = [name for name in world.docker("service", "ls", "--format", "{{.Name}}").split() if name.startswith("flag")]
        if names:
            world.docker("service", "rm", *names)
        world.until(lambda: not [n for n in found.tasks() if n.startswith("flag")], "their tasks are gone")


@pytest.mark.parametrize("row", FLAGS, ids=[row[0] for row in FLAGS])
def test_flag(made: Made, row: tuple[str, str, str, str, Any, str, Any]) -> None:
    world, name = made.world, made.name(row[0])
    assert made.answers[row[0]].returncode == 0, made.answers[row[0]].stderr
    flags, command, expected, path, value, spec_path, spec_value = json.loads(json.dumps(row).replace("NAME", name))
    task = made.tasks()[name][0]
    assert task["Status"]["State"] == "running", task["Status"]
    container, node = task["Status"]["ContainerStatus"]["ContainerID"], made.hosts[task["NodeID"]]
    out = world.docker("exec", container, "sh", "-c", command, node=node, check=False)
    assert re.search(expected, out), (expected, out)
    found = value_at(json.loads(world.docker("inspect", container, node=node))[0], path)
    if isinstance(value, str) and ("\\" in value or "[" in value or "*" in value):
        assert re.fullmatch(value, str(found)), found
    else:
        assert found == value
    service = world.api("GET", f"/services/{name}")
    of_service, of_task = value_at(service["Spec"]["TaskTemplate"], spec_path), value_at(task["Spec"], spec_path)
    assert of_service == of_task == spec_value
    if flags.startswith("--ulimit") and str(LIMIT + 5) in flags:
        said = f"started (ulimit nofile is {LIMIT} instead of {LIMIT + 5}: this host allows no more)"
        assert task["Status"]["Message"] == said
    else:
        assert task["Status"]["Message"] == "started"
    if flags == "--network host":
        pids = task["Status"]["ContainerStatus"]["PID"], nodes.daemon_pid(world.at, node)
        assert len({os.readlink(f"/proc/{pid}/ns/net") for pid in pids}) == 1
    if "volume-label" in flags:
        assert json.loads(world.docker("volume", "inspect", name, node=node))[0]["Labels"] == {"a": "b"}


@pytest.mark.parametrize("row", REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(made: Made, row: tuple[str, str]) -> None:
    done = made.answers[row[0]]
    assert done.returncode != 0 and row[1] in done.stderr
    assert made.name(row[0]) not in made.tasks()


@pytest.mark.parametrize("row", REJECTED, ids=[row[0] for row in REJECTED])
def test_said_by_the_task(made: Made, row: tuple[str, str]) -> None:
    assert made.answers[row[0]].returncode == 0, made.answers[row[0]].stderr
    status = made.tasks()[made.name(row[0])][0]["Status"]
    assert row[1] in status["Err"] and status["State"] in ("pending", "rejected", "failed")
