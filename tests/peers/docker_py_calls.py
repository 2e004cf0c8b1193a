"""What programs do with docker-py (`docker` on PyPI), in its own words. Run by test_docker_py.py, with docker-py's own environment, on the
host of a skepd whose registry has busybox. One file, though a long one: that environment has nothing of ours that tests could share.
"""

from __future__ import annotations

import io
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from docker.types import (
    ContainerSpec,
    EndpointSpec,
    Healthcheck,
    IPAMConfig,
    IPAMPool,
    LogConfig,
    Mount,
    Resources,
    RestartPolicy,
    ServiceMode,
    TaskTemplate,
    UpdateConfig,
)

NOWHERE = "127.0.0.1:5999/library/nosuch"
WITHIN = 60.0
"""Seconds."""
SLEEP = ["sleep", "1000"]


def until(holds: Callable[[], Any]) -> Any:
    end = time.monotonic() + WITHIN
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    made = docker.from_env()
    made.images.pull("busybox", tag="latest")
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    return f"n{uuid.uuid4().hex[:10]}"


@pytest.fixture
def box(client: docker.DockerClient, name: str) -> Iterator[Any]:
    """A container that runs."""
    made = client.containers.run("busybox", SLEEP, name=name, detach=True, init=True, labels={"of": "box"})
    yield made
    made.remove(force=True)


@pytest.fixture(scope="module")
def swarm(client: docker.DockerClient) -> Iterator[Any]:
    assert client.swarm.init(advertise_addr="192.0.2.1")
    yield client.swarm
    client.swarm.leave(force=True)


def run(client: docker.DockerClient, command: Any, *, stdout: bool = True, stderr: bool = False, **settings: Any) -> bytes:
    """What it wrote. It asks for the log, waits for the end, removes the container, and reads then."""
    return bytes(client.containers.run("busybox", command, stdout=stdout, stderr=stderr, remove=True, **settings))


def archive(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_system(client: docker.DockerClient) -> None:
    assert client.ping()
    assert client.version()["ApiVersion"] == client.api.api_version
    assert client.info()["ServerVersion"]
    assert {"LayersSize", "Images", "Containers", "Volumes"} <= set(client.df())


def test_images(client: docker.DockerClient, name: str) -> None:
    image = client.images.pull("busybox", tag="latest")
    assert "busybox:latest" in image.tags and image.id.startswith("sha256:") and image.short_id
    assert image.attrs["Os"] == "linux" and image.history()
    assert image.tag(name, tag="1") and client.images.get(f"{name}:1").id == image.id
    saved = b"".join(client.images.get(f"{name}:1").save(named=f"{name}:1"))
    client.images.remove(f"{name}:1")
    with pytest.raises(ImageNotFound):
        client.images.get(f"{name}:1")
    assert [one.id for one in client.images.load(saved)] == [image.id] and f"{name}:1" in client.images.get(f"{name}:1").tags
    assert client.images.list(name=name)[0].id == image.id
    client.images.remove(f"{name}:1")
    assert client.images.get_registry_data("busybox").id.startswith("sha256:")
    layers = list(client.api.pull("busybox", tag="latest", stream=True, decode=True))
    assert any("Status" in str(line.get("status")) for line in layers)
    with pytest.raises(NotFound):
        client.images.pull(NOWHERE, tag="1")
    assert "SpaceReclaimed" in client.images.prune()


def test_run(client: docker.DockerClient, name: str) -> None:
    assert run(client, "echo hello world") == client.containers.run("busybox", "echo hello world") == b"hello world\n"
    assert run(client, ["sh", "-c", "echo a; echo b >&2"], stdout=False, stderr=True) == b"b\n"
    with pytest.raises(ContainerError) as failed:
        client.containers.run("busybox", ["sh", "-c", "echo bad >&2; exit 7"], remove=True)
    assert failed.value.exit_status == 7 and b"bad" in failed.value.stderr
    with pytest.raises(NotFound):
        client.containers.run(f"{NOWHERE}:1", "true")
    many = client.containers.run("busybox", ["seq", "3"], stream=True)
    assert b"".join(many).split() == [b"1", b"2", b"3"]


def test_run_with_much(client: docker.DockerClient, name: str) -> None:
    """Most of what `run` takes is in the container."""
    script = "id -u; pwd; echo $A; hostname; cat /proc/self/oom_score_adj; ulimit -n; cat /proc/sys/net/core/somaxconn"
    script += "; touch /x || echo ro; cat /etc/hosts"
    said = run(
        client,
        ["sh", "-c", script],
        name=name,
        user="1000",
        working_dir="/tmp",
        environment={"A": "b"},
        hostname="boxed",
        oom_score_adj=100,
        ulimits=[docker.types.Ulimit(name="nofile", soft=512, hard=512)],
        sysctls={"net.core.somaxconn": "77"},
        read_only=True,
        tmpfs={"/scratch": "size=1m"},
        extra_hosts={"elsewhere": "192.0.2.77"},
        cap_drop=["ALL"],
        mem_limit="32m",
        nano_cpus=500_000_000,
        pids_limit=50,
        log_config=LogConfig(type="json-file", config={"max-size": "1m"}),
        healthcheck={"test": ["CMD", "true"], "interval": 10**9},
        stderr=True,
    ).decode()
    lines = said.splitlines()
    assert lines[:7] == ["1000", "/tmp", "b", "boxed", "100", "512", "77"]
    assert "ro" in lines and "192.0.2.77\telsewhere" in lines


def test_life(client: docker.DockerClient, box: Any, name: str) -> None:
    assert box.status in ("created", "running") and box.name == name
    box.reload()
    assert box.status == "running" and box.labels == {"of": "box"} and box.image.tags
    box.pause()
    box.reload()
    assert box.status == "paused"
    box.unpause()
    assert [row[-1] for row in box.top(ps_args="-o pid,args")["Processes"]]
    box.rename(f"{name}x")
    assert client.containers.get(f"{name}x").id == box.id
    box.update(mem_limit="64m", memswap_limit="64m", restart_policy={"Name": "on-failure", "MaximumRetryCount": 3})
    box.reload()
    assert box.attrs["HostConfig"]["Memory"] == 64 << 20 and box.attrs["HostConfig"]["RestartPolicy"]["MaximumRetryCount"] == 3
    assert [one.id for one in client.containers.list(filters={"label": "of=box", "status": "running"})] == [box.id]
    box.restart(timeout=1)
    box.stop(timeout=1)
    assert box.wait()["StatusCode"] in (137, 143)
    box.start()
    box.kill(signal="KILL")
    assert box.wait(condition="not-running")["StatusCode"] == 137
    with pytest.raises(APIError) as refused:
        client.containers.create("busybox", name=f"{name}x")
    assert refused.value.status_code == 409


def test_waiting_for_what_is_removed(client: docker.DockerClient) -> None:
    made = client.containers.run("busybox", SLEEP, detach=True)
    waiting = client.api._post(client.api._url("/containers/{0}/wait", made.id), stream=True)  # its head says that it waits
    made.remove(force=True)
    assert waiting.json()["StatusCode"] == 137


def test_exec(client: docker.DockerClient, box: Any) -> None:
    assert box.exec_run("echo hi") == (0, b"hi\n")
    assert box.exec_run(["sh", "-c", "exit 5"]).exit_code == 5
    code, (out, err) = box.exec_run(["sh", "-c", "echo $A; pwd; echo bad >&2"], environment=["A=b"], workdir="/tmp", demux=True)
    assert (code, out, err) == (0, b"b\n/tmp\n", b"bad\n")
    assert b"".join(box.exec_run(["seq", "100"], stream=True).output).split() == [str(n).encode() for n in range(1, 101)]
    assert box.exec_run("tty", tty=True).output.startswith(b"/dev/pts/")
    assert box.exec_run("id -u", user="1000").output == b"1000\n"
    made = client.api.exec_create(box.id, ["cat"], stdin=True)
    held = client.api.exec_start(made["Id"], socket=True)
    held._sock.sendall(b"ping\n")
    assert held.read(8 + 5)[8:] == b"ping\n"
    held._sock.close()
    held.close()
    assert client.api.exec_inspect(made["Id"])["ContainerID"] == box.id
    detached = client.api.exec_create(box.id, ["touch", "/detached"])
    client.api.exec_start(detached["Id"], detach=True)
    until(lambda: box.exec_run("ls /detached").exit_code == 0)


def test_logs_and_attach(client: docker.DockerClient) -> None:
    made = client.containers.run("busybox", ["sh", "-c", "for i in 1 2 3; do echo $i; done; echo e >&2; sleep 1000"], detach=True)
    try:
        until(lambda: made.logs().count(b"\n") == 4)
        assert made.logs(stderr=False) == b"1\n2\n3\n" and made.logs(tail=1, stdout=False) == b"e\n"
        assert made.logs(timestamps=True, stderr=False).splitlines()[0].endswith(b"Z 1")
        assert made.logs(since=time.time() + 100) == b""
        following = made.logs(stream=True, follow=True, stderr=False)
        assert next(following).startswith(b"1")
        following.close()
        assert b"3" in b"".join(iter_until(made.attach(stream=True, logs=True), b"e"))
    finally:
        made.remove(force=True)


def iter_until(stream: Any, last: bytes) -> Iterator[bytes]:
    for piece in stream:
        yield piece
        if last in piece:
            break
    stream.close()


def test_standard_input(client: docker.DockerClient) -> None:
    made = client.containers.create("busybox", ["cat"], stdin_open=True)
    try:
        held = made.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        made.start()
        held._sock.sendall(b"through\n")
        assert held.read(8 + 8)[8:] == b"through\n"
        held._sock.close()
        held.close()
    finally:
        made.remove(force=True)


def test_files(client: docker.DockerClient, box: Any) -> None:
    assert box.put_archive("/tmp", archive("given", b"content"))
    assert box.exec_run("cat /tmp/given").output == b"content"
    stream, told = box.get_archive("/tmp/given")
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        assert tar.extractfile("given").read() == b"content"  # type: ignore[union-attr]
    assert told["name"] == "given" and told["size"] == 7
    assert {"Path": "/tmp/given", "Kind": 1} in box.diff()
    with tarfile.open(fileobj=io.BytesIO(b"".join(box.export()))) as tar:
        assert "tmp/given" in tar.getnames()
    with pytest.raises(NotFound):
        box.get_archive("/nosuch")
    with pytest.raises(APIError) as refused:
        box.commit("x")
    assert refused.value.status_code == 501


def test_stats(client: docker.DockerClient, box: Any) -> None:
    once = box.stats(stream=False)
    assert once["memory_stats"]["usage"] > 0 and once["cpu_stats"]["cpu_usage"]["total_usage"] > 0 and once["name"] == f"/{box.name}"
    stream = box.stats(decode=True)
    assert next(stream)["read"] < next(stream)["read"]


def test_networks(client: docker.DockerClient, box: Any, name: str) -> None:
    pool = IPAMPool(subnet="10.77.3.0/24", gateway="10.77.3.1")
    network = client.networks.create(name, driver="bridge", ipam=IPAMConfig(pool_configs=[pool]), labels={"a": "b"}, internal=True)
    try:
        network.connect(box, aliases=["other"], ipv4_address="10.77.3.9")
        network.reload()
        assert [one.id for one in network.containers] == [box.id]
        box.reload()
        assert box.attrs["NetworkSettings"]["Networks"][name]["IPAddress"] == "10.77.3.9"
        assert run(client, ["nslookup", "other."], network=name).count(b"10.77.3.9") == 1
        assert [one.id for one in client.networks.list(names=[name], filters={"label": "a=b"}, greedy=True)] == [network.id]
        with pytest.raises(APIError):
            network.remove()
        network.disconnect(box)
    finally:
        network.disconnect(box, force=True) if client.networks.get(network.id).containers else None
        network.remove()
    with pytest.raises(NotFound):
        client.networks.get(network.id)
    assert "NetworksDeleted" in client.networks.prune()


def test_published_ports(client: docker.DockerClient) -> None:
    made = client.containers.run(
        "busybox",
        ["sh", "-c", "while true; do echo -e 'HTTP/1.0 200 OK\\r\\n\\r\\nhere' | nc -l -p 80; done"],
        detach=True,
        ports={"80/tcp": ("127.0.0.1", None)},
    )
    try:
        made.reload()
        assert made.ports["80/tcp"][0]["HostIp"] == "127.0.0.1" and int(made.ports["80/tcp"][0]["HostPort"]) > 1024
    finally:
        made.remove(force=True)


def test_volumes(client: docker.DockerClient, name: str) -> None:
    volume = client.volumes.create(name, driver="local", labels={"k": "v"})
    assert volume.attrs["Mountpoint"] and [one.id for one in client.volumes.list(filters={"label": "k=v"})] == [name]
    client.containers.run("busybox", ["sh", "-c", "echo kept > /data/file"], volumes={name: {"bind": "/data", "mode": "rw"}}, remove=True)
    mount = Mount("/other", name, read_only=True)
    holder = client.containers.run("busybox", SLEEP, mounts=[mount], detach=True, init=True)
    assert holder.exec_run("cat /other/file").output == b"kept\n" and holder.exec_run("touch /other/x").exit_code != 0
    with pytest.raises(APIError) as refused:
        volume.remove()
    assert refused.value.status_code == 409
    holder.remove(force=True)
    volume.remove()
    with pytest.raises(NotFound):
        client.volumes.get(name)
    assert "VolumesDeleted" in client.volumes.prune(filters={"label": "nosuch"})


def test_events(client: docker.DockerClient, name: str) -> None:
    since = int(time.time()) - 1
    seen: list[dict[str, Any]] = []
    stream = client.events(decode=True, filters={"type": "container", "container": name})
    reader = threading.Thread(target=lambda: seen.extend(one for one in stream), daemon=True)
    reader.start()
    client.containers.run("busybox", "true", name=name, detach=True).wait()
    until(lambda: "die" in [one["Action"] for one in seen])
    stream.close()
    client.containers.get(name).remove()
    past = list(client.events(decode=True, since=since, until=int(time.time()) + 1, filters={"container": name}))
    actions = [one["Action"] for one in past]
    assert actions == ["create", "attach", "start", "die", "destroy"] or actions == ["create", "start", "die", "destroy"], actions


def test_prune_containers(client: docker.DockerClient) -> None:
    made = client.containers.run("busybox", "true", detach=True, labels={"prune": "me"})
    made.wait()
    assert client.containers.prune(filters={"label": "prune=me"})["ContainersDeleted"] == [made.id]


def test_swarm(client: docker.DockerClient, swarm: Any) -> None:
    swarm.reload()
    assert swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-") and swarm.version
    swarm.update(task_history_retention_limit=3)
    swarm.reload()
    assert swarm.attrs["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"] == 3
    (node,) = client.nodes.list(filters={"role": "manager"})
    assert node.attrs["Status"]["State"] == "ready"
    node.update({"Availability": "active", "Role": "manager", "Labels": {"zone": "a"}})
    node.reload()
    assert node.attrs["Spec"]["Labels"] == {"zone": "a"}
    with pytest.raises(APIError):
        swarm.init()


def running(service: Any) -> list[Any]:
    return [task for task in service.tasks(filters={"desired-state": "running"}) if task["Status"]["State"] == "running"]


def test_services(client: docker.DockerClient, swarm: Any, name: str) -> None:
    network = client.networks.create(name, driver="overlay", attachable=True, labels={"x": "y"})
    service = client.services.create(
        "busybox",
        ["sh", "-c", "echo from $A; exec sleep 1000"],
        name=name,
        env=["A=task {{.Task.Slot}}"],
        labels={"k": "v"},
        container_labels={"c": "d"},
        constraints=["node.role == manager"],
        networks=[network.id],
        mounts=["/tmp:/host:ro"],
        endpoint_spec=EndpointSpec(ports={18080: 80}),
        mode=ServiceMode("replicated", replicas=1),
        resources=Resources(mem_limit=32 << 20, cpu_reservation=10**7),
        restart_policy=RestartPolicy(condition="any", delay=0),
        update_config=UpdateConfig(parallelism=1, delay=0),
        stop_grace_period=10**9,
        healthcheck=Healthcheck(test=["NONE"]),
        init=True,
    )
    try:
        assert [one.id for one in client.services.list(filters={"name": name})] == [service.id] and service.name == name
        until(lambda: len(running(service)) == 1)
        assert service.scale(3)
        until(lambda: len(running(service)) == 3)
        until(lambda: b"".join(service.logs(stdout=True)).count(b"from task") >= 3)
        service.reload()
        assert service.attrs["Spec"]["Mode"]["Replicated"]["Replicas"] == 3
        assert service.attrs["Endpoint"]["Ports"][0]["PublishedPort"] == 18080
        service.update(image="busybox", labels={"k": "w"}, command=SLEEP, fetch_current_spec=True)
        until(lambda: service.reload() or service.attrs.get("UpdateStatus", {}).get("State") == "completed")
        assert service.attrs["Spec"]["Labels"] == {"k": "w"} and service.attrs["PreviousSpec"]
        service.force_update()
        assert client.services.list(status=True)[0].attrs["ServiceStatus"]["DesiredTasks"] == 3
        assert run(client, ["nslookup", f"{name}."], network=name).count(b"Address") >= 2
    finally:
        service.remove()
    with pytest.raises(NotFound):
        client.services.get(service.id)
    until(lambda: removed(network))


def removed(network: Any) -> bool:
    """An overlay network goes when its last task has left."""
    try:
        network.remove()
    except APIError as error:
        return error.status_code == 404
    return True


def test_the_plain_calls_of_a_service(client: docker.DockerClient, swarm: Any, name: str) -> None:
    spec = TaskTemplate(ContainerSpec("busybox", command=SLEEP, init=True), restart_policy=RestartPolicy(condition="none"))
    made = client.api.create_service(spec, name=name)
    assert client.api.inspect_service(made["ID"])["Spec"]["Name"] == name
    task = until(lambda: client.api.tasks(filters={"service": name}))[0]
    assert client.api.inspect_task(task["ID"])["ServiceID"] == made["ID"]
    assert client.api.remove_service(name)
