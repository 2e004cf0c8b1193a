"""A task's spec over its image's: what the container is given, and what is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from skep.engine.base import Device, Image, ImageConfig, Limits, Ulimit
from skep.errors import Forbidden, Invalid, SkepError
from skep.model import spec as s
from skep.model.assignment import TaskItem
from skep.model.task import Attachment, Task
from skep.node.container import NodeFacts, build, environment, expanded, log_options, lowered, parse_size, refuse_unsupported, resolv_conf

FACTS = NodeFacts(hostname="host1", resolv_conf="# x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nsearch corp.example\noptions ndots:2\n")
IMAGE = Image(
    id="sha256:1",
    config=ImageConfig(
        entrypoint=("/entry",),
        cmd=("serve",),
        env=("PATH=/bin", "A=image"),
        working_dir="/srv",
        user="web",
        labels={"from": "image", "both": "image"},
        stop_signal="SIGQUIT",
    ),
)


def item(task: dict[str, Any] | None = None, attachments: tuple[Attachment, ...] = (), **container: Any) -> TaskItem:
    spec = s.TaskSpec(container_spec=s.ContainerSpec(image="web:1", **container), **(task or {}))
    made = Task(id="tid", service_id="sid", service_name="web", slot=2, node_id="nid", spec=spec, attachments=attachments)
    return TaskItem(task=made)


def made(given: TaskItem, image: Image = IMAGE) -> Any:
    spec = expanded(given, FACTS)
    refuse_unsupported(given, spec)
    return build(given, spec, image, FACTS, "ab" * 32, "/n", ())


def test_names_and_labels() -> None:
    config = made(item(labels={"both": "spec", "x": "y"}))
    assert (config.name, config.id, config.image, config.netns) == ("web.2.tid", "ab" * 32, "sha256:1", "/n")
    assert config.labels == {
        "from": "image",
        "both": "spec",
        "x": "y",
        "com.docker.swarm.node.id": "nid",
        "com.docker.swarm.service.id": "sid",
        "com.docker.swarm.service.name": "web",
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": "tid",
        "com.docker.swarm.task.name": "web.2.tid",
    }
    assert config.extra["image"] == "web:1"


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        (None, None, ("/entry", "serve")),
        (None, ("x",), ("/entry", "x")),
        (("c",), None, ("c",)),
        (("c",), ("x", "y"), ("c", "x", "y")),
    ],
)
def test_arguments(command: Any, args: Any, expected: tuple[str, ...]) -> None:
    assert made(item(command=command, args=args)).args == expected


def test_no_command_at_all() -> None:
    with pytest.raises(Invalid, match="no command specified"):
        made(item(), Image(id="sha256:2"))


def test_what_the_image_says_holds_until_the_spec_says_otherwise() -> None:
    plain = made(item())
    assert (plain.cwd, plain.user, plain.stop_signal, plain.env) == ("/srv", "web", "SIGQUIT", ("PATH=/bin", "A=image"))
    config = made(item(dir="/w/../v", user="7:8", stop_signal="SIGINT", env=("A=spec", "B={{.Task.Slot}}", "PATH"), groups=("9",)))
    assert (config.cwd, config.user, config.stop_signal, config.env) == ("/v", "7:8", "SIGINT", ("A=spec", "B=2"))
    with pytest.raises(Invalid, match="the working directory 'rel' is invalid, it needs to be an absolute path"):
        made(item(dir="rel"))


def test_the_rest_of_the_spec() -> None:
    rights = s.Privileges(no_new_privileges=True, seccomp=s.SeccompOpts(mode="custom", profile=base64.b64encode(b'{"a":1}').decode()))
    config = made(
        item(
            {"resources": s.ResourceRequirements(limits=s.Limits(nano_cpus=5, memory_bytes=6, pids=7))},
            (Attachment(network_id="ing", addresses=("10.0.0.5/24",)),),
            hostname="{{.Node.Hostname}}-{{.Task.Slot}}",
            tty=True,
            open_stdin=True,
            read_only=True,
            init=True,
            capability_add=("CAP_X",),
            sysctls={"net.core.somaxconn": "9", "kernel.msgmax": "1"},
            ulimits=(s.Ulimit(name="nofile", soft=1, hard=2),),
            oom_score_adj=3,
            hosts=("10.1.1.1 a b",),
            privileges=rights,
            dns_config=s.DNSConfig(nameservers=("1.1.1.1",), search=("x.example", "."), options=("ndots:1",)),
        )
    )
    assert config.hostname == "host1-2" and config.tty and config.stdin and config.read_only and config.init
    assert config.limits == Limits(nano_cpus=5, memory=6, pids=7)
    assert config.sysctls == {"kernel.msgmax": "1"}, "those of the network go to the sandbox"
    assert config.ulimits == (Ulimit(name="nofile", soft=1, hard=2),)
    assert config.hosts == ("10.1.1.1\ta", "10.1.1.1\tb", "10.0.0.5\thost1-2")
    assert config.seccomp == '{"a":1}' and config.no_new_privileges
    assert config.resolv_conf == "nameserver 127.0.0.11\nsearch x.example\noptions ndots:1\n"


def test_resolvers_of_the_host_that_a_container_can_reach() -> None:
    assert resolv_conf(None, FACTS.resolv_conf) == "nameserver 10.0.0.2\nsearch corp.example\noptions ndots:2\n"
    assert resolv_conf(None, "") == ""


def test_generic_resources_become_variables() -> None:
    given = item()
    resources = (
        s.GenericResource(named_resource_spec=s.NamedGenericResource(kind="gpu", value="U1")),
        s.GenericResource(named_resource_spec=s.NamedGenericResource(kind="gpu", value="U2")),
        s.GenericResource(discrete_resource_spec=s.DiscreteGenericResource(kind="ssd-x", value=3)),
    )
    import msgspec

    given = TaskItem(task=msgspec.structs.replace(given.task, generic_resources=resources))
    assert made(given).env[-2:] == ("DOCKER_RESOURCE_GPU=U1,U2", "DOCKER_RESOURCE_SSD_X=3")


@pytest.mark.parametrize(
    ("container", "message"),
    [
        (
            {"secrets": (s.SecretReference(secret_id="i", secret_name="key"),)},
            "secret key: secrets are not available in this version of skep",
        ),
        ({"configs": (s.ConfigReference(config_id="i"),)}, "config i: configs are not available in this version of skep"),
        (
            {"mounts": (s.Mount(type="image", source="v", target="/v"),)},
            "mount /v: skep has no mounts of type image, use bind, volume or tmpfs",
        ),
        ({"isolation": "hyperv"}, "isolation hyperv exists on Windows only"),
        ({"privileges": s.Privileges(credential_spec=s.CredentialSpec(file="x"))}, "credential specs exist on Windows only"),
        ({"privileges": s.Privileges(selinux_context=s.SELinuxContext(user="x"))}, "skep does not set SELinux labels"),
        ({"privileges": s.Privileges(seccomp=s.SeccompOpts(mode="custom", profile="%"))}, "seccomp profile is not base64 of JSON"),
        ({"privileges": s.Privileges(seccomp=s.SeccompOpts(mode="odd"))}, "unknown seccomp mode odd"),
        ({"hostname": "{{.Nope}}"}, "expanding hostname failed: template: expansion:1"),
        ({"mounts": (s.Mount(type="bind", source="rel", target="/v"),)}, "invalid mount path: 'rel' mount path must be absolute"),
    ],
)
def test_what_this_version_cannot_do_is_never_ignored(container: dict[str, Any], message: str) -> None:
    with pytest.raises(SkepError) as refused:
        made(item(**container))
    assert message in refused.value.text and "\n" not in refused.value.text


def test_the_hosts_network() -> None:
    host = (Attachment(network_id="host"),)
    assert made(item(None, host)).host_network
    with pytest.raises(Invalid, match=r"sysctl 'net.core.somaxconn' is not allowed in the host network namespace"):
        made(item(None, host, sysctls={"kernel.msgmax": "1", "net.core.somaxconn": "9"}))


def test_what_the_services_labels_ask_for() -> None:
    labels = {"skep.privileged": "true", "skep.devices": "/dev/fuse,/dev/kvm:/dev/mine:r", "x": "y"}
    given = item()
    config = made(TaskItem(task=given.task, service_labels=labels))
    assert config.privileged
    assert config.devices == (
        Device(source="/dev/fuse", target="/dev/fuse"),
        Device(source="/dev/kvm", target="/dev/mine", permissions="r"),
    )
    assert "x" not in config.labels, "labels of the service are not its containers'"
    with pytest.raises(Forbidden, match="service web may not"):
        made(TaskItem(task=given.task, service_labels=labels, refused="service web may not be privileged"))


def test_memory() -> None:
    def limits(limit: int, reserved: int) -> Limits:
        resources = s.ResourceRequirements(limits=s.Limits(memory_bytes=limit), reservations=s.Reservations(memory_bytes=reserved))
        got: Limits = made(item({"resources": resources})).limits
        return got

    assert limits(64, 32) == Limits(memory=64, memory_reservation=32)
    assert limits(0, 32) == Limits(memory_reservation=32)
    assert limits(64, 128) == Limits(memory=64, memory_reservation=64), "the kernel takes no more than the limit"


def test_a_host_that_allows_less_says_so() -> None:
    asked = (Ulimit(name="nofile", soft=5, hard=300), Ulimit(name="nproc", soft=-1, hard=-1), Ulimit(name="core", soft=0, hard=0))
    assert lowered(asked, {"RLIMIT_NOFILE": 200, "RLIMIT_NPROC": 50, "RLIMIT_CORE": -1}) == [
        "ulimit nofile is 200 instead of 300: this host allows no more",
        "ulimit nproc is 50 instead of unlimited: this host allows no more",
    ]
    assert lowered(asked, {"RLIMIT_NOFILE": 300}) == lowered(asked, {}) == []


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (s.Driver(name=""), ("json-file", 0, 1)),
        (s.Driver(name="json-file", options={"max-size": "10m", "max-file": "3", "labels": "a"}), ("json-file", 10 << 20, 3)),
        (s.Driver(name="local"), ("local", 20 << 20, 5)),
        (s.Driver(name="none"), ("none", 0, 1)),
    ],
)
def test_log_drivers(driver: s.Driver, expected: tuple[str, int, int]) -> None:
    assert log_options(driver) == expected


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (s.Driver(name="syslog"), "logging driver syslog is not available: this node keeps logs with json-file, local or none"),
        (s.Driver(name="json-file", options={"colour": "red"}), "unknown log opt 'colour' for json-file log driver"),
        (s.Driver(name="json-file", options={"mode": "non-blocking"}), "log option mode=non-blocking is not available"),
        (s.Driver(name="json-file", options={"max-size": "huge"}), "invalid size: 'huge'"),
        (s.Driver(name="json-file", options={"max-file": "2"}), "max-file cannot be used without max-size"),
        (s.Driver(name="json-file", options={"max-size": "1m", "max-file": "0"}), "max-file cannot be less than 1"),
        (s.Driver(name="json-file", options={"tag": "{{.Nosuch}}"}), "Nosuch"),
        (s.Driver(name="json-file", options={"env-regex": "("}), "error parsing regexp"),
    ],
)
def test_log_drivers_refused(driver: s.Driver, message: str) -> None:
    with pytest.raises(SkepError) as refused:
        log_options(driver)
    assert message in refused.value.text


def test_sizes() -> None:
    assert [parse_size(text) for text in ("10", "10b", "1k", "1KiB", "1.5m", "2gb", "-1")] == [10, 10, 1024, 1024, 3 << 19, 2 << 30, 0]


def test_environment_merges() -> None:
    assert environment(("A=1", "B=2"), ("B=3", "A", "C=")) == ("B=3", "C=")
