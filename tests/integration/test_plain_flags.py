"""Every flag of `docker run` that concerns the container: it has its effect inside, and inspect shows it. What skep refuses is refused
before anything is made."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plain_world import World, docker_world

pytestmark = pytest.mark.root
CGROUP = "/sys/fs/cgroup"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with docker_world() as found:
        found.docker("network", "create", "--subnet", "10.66.0.0/24", "net1")
        found.docker("network", "create", "net2")
        found.docker("run", "-d", "--name", "other", "--network", "net1", "--ipc", "shareable", "-v", "/shared", "box:1", "sleep", "1000")
        yield found


STATUS = "cat /proc/self/status"
"""Of a shell's child: what capabilities and filters a process has."""

# flags, what runs inside, what it must print (a regular expression), where inspect shows it, and as what
FLAGS: list[tuple[str, str, str, str, Any]] = [
    ("--add-host db:1.2.3.4", "cat /etc/hosts", r"1\.2\.3\.4\tdb\n", "HostConfig.ExtraHosts", ["db:1.2.3.4"]),
    ("--add-host me:host-gateway", "cat /etc/hosts", r"172\.17\.0\.1\tme\n", "HostConfig.ExtraHosts", ["me:host-gateway"]),
    ("--annotation a=b", "", "", "", "skep does not pass annotations"),
    ("--blkio-weight 300", "true", "", "HostConfig.BlkioWeight", 300),
    ("--cap-add NET_ADMIN", "ip addr add 192.0.2.9/32 dev lo && echo can", r"can", "HostConfig.CapAdd", ["CAP_NET_ADMIN"]),
    ("--cap-add nosuch", "", "", "", 'unknown capability: "CAP_NOSUCH"'),
    ("--cap-drop ALL", STATUS, r"CapBnd:\t0000000000000000", "HostConfig.CapDrop", ["ALL"]),
    ("--cgroup-parent /%CG%x --cgroupns host", "cat /proc/1/cgroup", r"/%CG%x/", "HostConfig.CgroupParent", "/%CG%x"),
    ("--cgroupns host", "true", "", "HostConfig.CgroupnsMode", "host"),
    ("--cpu-period 50000 --cpu-quota 25000", "true", "", "HostConfig.CpuQuota", 25000),
    ("--cpu-shares 300", "true", "", "HostConfig.CpuShares", 300),
    ("--cpus 0.5", "true", "", "HostConfig.NanoCpus", 500_000_000),
    ("--cpuset-cpus 0", STATUS, r"Cpus_allowed_list:\t0\n", "HostConfig.CpusetCpus", "0"),
    ("--cpuset-mems 0", STATUS, r"Mems_allowed_list:\t0\n", "HostConfig.CpusetMems", "0"),
    ("--device /dev/fuse:/dev/myfuse:r", "ls -l /dev/myfuse", r"^c", "HostConfig.Devices",
     [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/myfuse", "CgroupPermissions": "r"}]),
    ("--device-cgroup-rule 'c 10:229 rwm'", "mknod /f c 10 229 && echo made", "made", "HostConfig.DeviceCgroupRules", ["c 10:229 rwm"]),
    ("--device-read-bps /dev/null:1mb", "", "", "", "skep does not limit single block devices"),
    ("--dns 192.0.2.1", "cat /etc/resolv.conf", r"nameserver 127\.0\.0\.11", "HostConfig.Dns", ["192.0.2.1"]),
    ("--dns 192.0.2.1 --network none", "cat /etc/resolv.conf", r"nameserver 192\.0\.2\.1\n", "HostConfig.Dns", ["192.0.2.1"]),
    ("--dns-search a.b", "cat /etc/resolv.conf", r"search a\.b\n", "HostConfig.DnsSearch", ["a.b"]),
    ("--dns-option ndots:3", "cat /etc/resolv.conf", r"options ndots:3\n", "HostConfig.DnsOptions", ["ndots:3"]),
    ("--domainname dom.test --hostname hh", "cat /proc/sys/kernel/domainname; hostname", r"dom\.test\nhh", "Config.Domainname", "dom.test"),
    ("--entrypoint /bin/echo", "", r"^-c ", "Config.Entrypoint", ["/bin/echo"]),
    ("-e A=1 -e FROM_IMAGE=no", "env", r"(?s)(?=.*\bA=1\n)(?=.*\bFROM_IMAGE=no\n)", "Config.Env", ["FROM_IMAGE=no", "A=1"]),
    ("--expose 99/udp", "true", "", "Config.ExposedPorts", {"80/tcp": {}, "99/udp": {}}),
    ("--gpus all", "", "", "", "could not select device driver"),
    ("--group-add log --group-add 777", "id -G", r"\b200\b.*\b777\b", "HostConfig.GroupAdd", ["log", "777"]),
    ("--health-cmd true --health-interval 3s --health-retries 4 --health-timeout 2s --health-start-period 1s", "true", "",
     "Config.Healthcheck",
     {"Test": ["CMD-SHELL", "true"], "Interval": 3_000_000_000, "Timeout": 2_000_000_000, "StartPeriod": 1_000_000_000, "Retries": 4}),
    ("--no-healthcheck", "true", "", "Config.Healthcheck.Test", ["NONE"]),
    ("-h myhost", "hostname; cat /etc/hosts", r"(?s)^myhost\n.*\tmyhost", "Config.Hostname", "myhost"),
    ("--health-cmd true --health-start-interval 2s", "true", "", "Config.Healthcheck.StartInterval", 2_000_000_000),
    ("--ip6 fd00::5 --network net1", "", "", "", "skep gives containers IPv4 addresses only"),
    ("--link-local-ip 169.254.1.1 --network net1", "", "", "", "skep gives containers IPv4 addresses only"),
    ("--network name=net1,driver-opt=a=b", "", "", "", "skep knows no driver options of endpoints: a"),
    ("--network net1 --network net2", "ls /sys/class/net | wc -l", r"^3", "NetworkSettings.Networks.net2.GwPriority", 0),
    ("--platform linux/amd64", "true", "", "Platform", "linux"),
    ("--init", "cat /proc/1/cmdline", r"init", "HostConfig.Init", True),
    ("-i", "true", "", "Config.OpenStdin", True),
    ("--ip 10.66.0.50 --network net1", "ip a", r"10\.66\.0\.50/24",
     "NetworkSettings.Networks.net1.IPAMConfig", {"IPv4Address": "10.66.0.50"}),
    ("--ipc container:other", "true", "", "HostConfig.IpcMode", r"container:[0-9a-f]{64}"),
    ("--ipc host", "ls -di /proc/self/ns/ipc; readlink /proc/self/ns/ipc", r"ipc:\[4026531839\]", "HostConfig.IpcMode", "host"),
    ("--ipc none", "ls -A /dev/shm | wc -l; mount | grep -c ' /dev/shm '", r"0\n0", "HostConfig.IpcMode", "none"),
    ("--isolation default", "true", "", "HostConfig.Isolation", "default"),
    ("-l a=b", "true", "", "Config.Labels", {"of": "image", "a": "b"}),
    ("--link other:db --network net1", "ping -c1 -W2 db", r"1 packets received", "NetworkSettings.Networks.net1.Links", ["other:db"]),
    ("--log-driver json-file --log-opt max-size=1m --log-opt max-file=2", "true", "", "HostConfig.LogConfig",
     {"Type": "json-file", "Config": {"max-file": "2", "max-size": "1m"}}),
    ("--log-driver syslog", "", "", "", "logging driver syslog is not available"),
    ("--log-opt tag={{.Nosuch}}", "", "", "", "Nosuch"),
    ("--mac-address 02:42:aa:bb:cc:dd --network host", "", "", "", "conflicting options: mac-address and the network mode"),
    ("--mac-address 02:42:aa:bb:cc:dd --network none", "", "", "", "conflicting options: mac-address and the network mode"),
    ("--mac-address 02:42:aa:bb:cc:dd --network container:other", "", "", "", "conflicting options: mac-address and the network mode"),
    ("--sysctl net.core.somaxconn=9 --network host", "", "", "", 'sysctl "net.core.somaxconn" not allowed in host network namespace'),
    ("--sysctl net.core.somaxconn=9 --network container:other", "", "", "", "sysctl net.core.somaxconn: the network is that of container"),
    ("--mac-address 02:42:aa:bb:cc:dd", "cat /sys/class/net/eth0/address", r"02:42:aa:bb:cc:dd",
     "NetworkSettings.Networks.bridge.MacAddress", "02:42:aa:bb:cc:dd"),
    ("-m 64m", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null", r"67108864",
     "HostConfig.Memory", 64 << 20),
    ("-m 64m --memory-swap 96m", "true", "", "HostConfig.MemorySwap", 96 << 20),
    ("-m 64m --memory-reservation 32m", "true", "", "HostConfig.MemoryReservation", 32 << 20),
    ("--memory-swappiness 10", "true", "", "HostConfig.MemorySwappiness", 10),
    ("--mount type=bind,src=/%TMP%/host,dst=/m,readonly", "cat /m/file; touch /m/x 2>&1", r"from the host\n.*Read-only",
     "HostConfig.Mounts",
     [{"Type": "bind", "Source": "/%TMP%/host", "Target": "/m", "ReadOnly": True}]),
    ("--mount type=bind,src=/%TMP%/nosuch,dst=/m", "", "", "", "bind source path does not exist"),
    ("--mount type=volume,src=vol2,dst=/m", "touch /m/x; mount", r" on /m ", "Mounts.0.Name", "vol2"),
    ("--mount type=volume,dst=/seeded,volume-nocopy", "ls -A /seeded | wc -l", r"^0\n", "Mounts.0.Type", "volume"),
    ("--mount type=tmpfs,dst=/m,tmpfs-size=1m,tmpfs-mode=700", "mount | grep ' /m '; stat -c %a /m", r"size=1024k.*\n700",
     "Mounts.0.Type", "tmpfs"),
    ("--mount type=image,src=box:1,dst=/m", "", "", "", "skep has no mounts of type image"),
    ("--name named", "true", "", "Name", "/named"),
    ("--network none", "ls /sys/class/net", r"^lo\n$", "HostConfig.NetworkMode", "none"),
    ("--network host", "hostname; readlink /proc/self/ns/net", "%NET%", "HostConfig.NetworkMode", "host"),
    ("--network container:other", "ip a", r"10\.66\.0\.2/", "HostConfig.NetworkMode", r"container:[0-9a-f]{64}"),
    ("--network net1 --network-alias al", "ping -c1 -W2 al", r"1 packets received", "NetworkSettings.Networks.net1.Aliases", ["al"]),
    ("--oom-kill-disable -m 64m", "true", "", "HostConfig.OomKillDisable", True),
    ("--oom-score-adj 321", "cat /proc/self/oom_score_adj", r"^321", "HostConfig.OomScoreAdj", 321),
    ("--pid host", "readlink /proc/self/ns/pid", "%PID%", "HostConfig.PidMode", "host"),
    ("--pid container:other", "ps | grep -c 'sleep 1000'", r"^[1-9]", "HostConfig.PidMode", r"container:[0-9a-f]{64}"),
    ("--pids-limit 33", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null", r"^33", "HostConfig.PidsLimit", 33),
    ("--privileged", STATUS, r"Seccomp:\t0", "HostConfig.Privileged", True),
    ("--read-only", "touch /x 2>&1; touch /dev/shm/x && echo shm", r"Read-only file system\n.*shm", "HostConfig.ReadonlyRootfs", True),
    ("--runtime nosuch", "", "", "", "unknown or invalid runtime name: nosuch"),
    ("--security-opt no-new-privileges", STATUS, r"NoNewPrivs:\t1", "HostConfig.SecurityOpt", ["no-new-privileges"]),
    ("--security-opt seccomp=unconfined", STATUS, r"Seccomp:\t0", "HostConfig.SecurityOpt", ["seccomp=unconfined"]),
    ("--security-opt apparmor=mine", "", "", "", "skep does not load AppArmor profiles"),
    ("--security-opt label=type:t", "", "", "", "skep does not set SELinux labels"),
    ("--security-opt systempaths=unconfined", "grep -c ' /proc/' /proc/self/mountinfo", r"^0", "HostConfig.MaskedPaths", []),
    ("--shm-size 1m", "df -k /dev/shm", r"\b1024\b", "HostConfig.ShmSize", 1 << 20),
    ("--stop-signal USR1", "true", "", "Config.StopSignal", "USR1"),
    ("--stop-timeout 3", "true", "", "Config.StopTimeout", 3),
    ("--storage-opt size=1g", "", "", "", "--storage-opt is supported only for overlay over xfs"),
    ("--sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward", r"^1", "HostConfig.Sysctls", {"net.ipv4.ip_forward": "1"}),
    ("--sysctl kernel.msgmax=9000", "cat /proc/sys/kernel/msgmax", r"^9000", "HostConfig.Sysctls", {"kernel.msgmax": "9000"}),
    ("--tmpfs /t:size=64k,exec", "mount | grep ' /t '", r"tmpfs on /t type tmpfs \(rw,nosuid,nodev,relatime,size=64k(,inode64)?\)",
     "HostConfig.Tmpfs", {"/t": "size=64k,exec"}),
    ("-t", "tty", r"/dev/pts/0", "Config.Tty", True),
    ("--ulimit nofile=100:200", "ulimit -n; ulimit -Hn", r"^100\r?\n200",
     "HostConfig.Ulimits", [{"Name": "nofile", "Hard": 200, "Soft": 100}]),
    ("-u web", "id -un; id -gn", r"^web\nweb", "Config.User", "web"),
    ("-u 5:6", "id -u; id -g", r"^5\n6", "Config.User", "5:6"),
    ("-u nosuch", "", "", "", "unable to find user nosuch"),
    ("--userns host", "true", "", "HostConfig.UsernsMode", "host"),
    ("--uts host", "readlink /proc/self/ns/uts", "%UTS%", "HostConfig.UTSMode", "host"),
    ("-v /%TMP%/host:/m", "cat /m/file", r"from the host", "Mounts.0",
     {"Type": "bind", "Source": "/%TMP%/host", "Destination": "/m", "Mode": "", "RW": True, "Propagation": "rprivate"}),
    ("-v /%TMP%/host:/m:ro", "touch /m/x 2>&1", r"Read-only", "Mounts.0.RW", False),
    ("-v /%TMP%/host/file:/m:ro", "cat /m; echo x > /m", r"from the host", "Mounts.0.RW", False),
    ("--read-only -v /%TMP%/host/file:/new/dir/m:ro", "cat /new/dir/m", r"from the host", "Mounts.0.RW", False),
    ("--mount type=bind,src=/%TMP%/host/file,dst=/m,readonly", "cat /m; echo x > /m", r"from the host", "Mounts.0.RW", False),
    ("-v /%TMP%/s.sock:/var/run/docker.sock:ro", "ls -l /var/run/docker.sock", r"^s", "Mounts.0.RW", False),
    ("-v /%TMP%/made/deep:/m", "ls -d /m", r"/m", "HostConfig.Binds", ["/%TMP%/made/deep:/m"]),
    ("-v /%TMP%/r:/m:rslave", "cat /proc/self/mountinfo | grep ' /m '", r"master:", "Mounts.0.Propagation", "rslave"),
    ("-v vol1:/seeded", "cat /seeded/file", r"from the image", "Mounts.0.Name", "vol1"),
    ("-v vol3:/seeded:nocopy", "ls -A /seeded | wc -l", r"^0", "Mounts.0.Name", "vol3"),
    ("-v /seeded", "cat /seeded/file", r"from the image", "Mounts.0.Type", "volume"),
    ("-v rel/ative:/m", "", "", "", "includes invalid characters for a local volume name"),
    ("-v /a:/m -v /b:/m", "", "", "", "Duplicate mount point: /m"),
    ("--volume-driver nosuch -v v:/m", "", "", "", "volume driver nosuch"),
    ("--volumes-from other", "mount", r" on /shared ", "HostConfig.VolumesFrom", ["other"]),
    ("--volumes-from other:ro", "touch /shared/x 2>&1", r"Read-only", "Mounts.0.RW", False),
    ("-w /new/dir", "pwd", r"^/new/dir", "Config.WorkingDir", "/new/dir"),
]  # fmt: skip


def value_at(shown: Any, path: str) -> Any:
    for part in path.split("."):
        shown = shown[int(part)] if isinstance(shown, list) else shown[part]
    return shown


@pytest.mark.parametrize("row", FLAGS, ids=[row[0] for row in FLAGS])
def test_flag(world: World, row: tuple[str, str, str, str, Any]) -> None:
    host = Path(world.folder) / "host"
    host.mkdir(exist_ok=True)
    (host / "file").write_text("from the host\n")
    inodes = {kind: os.readlink(f"/proc/{world.holder.pid}/ns/{kind}") for kind in ("net", "pid", "uts")}
    text = json.dumps(row).replace("/%TMP%", str(world.folder)).replace("%CG%", world.folder.name)
    for kind, inode in inodes.items():
        text = text.replace(f"%{kind.upper()}%", json.dumps(re.escape(inode))[1:-1])
    flags, command, expected, path, value = json.loads(text)
    name = "named" if "--name" in flags else "flag1"
    words = [*shlex.split(flags), "box:1", *(["-c", "x"] if "--entrypoint" in flags else ["sh", "-c", command])]
    try:
        done = world.docker("run", *(() if name == "named" else ("--name", name)), *words, check=False)
        if not path:
            assert done.returncode == 125 and value in done.stderr, done
            return
        assert done.returncode in (0, 1), done.stderr
        assert re.search(expected, done.stdout), (expected, done.stdout, done.stderr)
        found = value_at(world.inspect(name), path)
        if isinstance(value, str) and "[" in value:
            assert re.fullmatch(value, found)
        else:
            assert found == value
    finally:
        world.docker("rm", "-f", "-v", name, check=False)
