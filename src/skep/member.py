"""What a node remembers of its membership (`swarm/node.json`), and the birth of a cluster: its first state, durable, before anybody hears.

node.json is what makes a node a member: it is written last, and taken away first, so that a crash in between leaves a node that is in no
cluster and whose remains the next init or join sweeps away. All of it lies in one folder with mode 0700.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from skep.agent.attachments import ClusterAttachments
from skep.agent.check import Examine
from skep.api.context import InitRequest
from skep.clock import Clock
from skep.datapath.base import Datapath
from skep.errors import ConfigError, SkepError
from skep.ids import Random
from skep.link.tls import Certificates, new_key
from skep.manager import ca
from skep.manager.control import bootstrap_cluster
from skep.model.defaults import NODE_CERT_EXPIRY
from skep.model.enums import Role
from skep.model.node import NodeDescription
from skep.node.tasks import TaskRuntime
from skep.store.base import Backend
from skep.store.memory import MemoryStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Makers:
    """What the daemon hands in: how things are made that only it may name, the clock and the randomness."""

    clock: Clock
    rng: Random
    describe: Callable[[str], NodeDescription]
    """From the root certificate."""
    runtime: Callable[[Datapath], TaskRuntime]
    datapath: Callable[[str], Datapath]
    """From the data path address."""
    backend: Callable[[Path], Backend]
    attachments: ClusterAttachments | None = None
    """Of plain containers to the cluster's networks."""
    examine: Examine | None = None
    """Looks whether this node's network is well."""


@dataclass
class Member:
    """What swarm/node.json says."""

    node_id: str
    cluster_id: str
    manager: bool
    listen: str
    advertise: str
    data_path: str
    managers: list[str]


def load(root: Path) -> Member | None:
    """None: this node is in no cluster. Raises ConfigError for a file that is not ours."""
    path = root / "node.json"
    try:
        return Member(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def save(root: Path, member: Member) -> None:
    """Durable when it returns. Raises SkepError (the disk is full)."""
    path, temporary = root / "node.json", root / "node.json.tmp"
    try:
        make_folder(root)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w") as out:
            json.dump(asdict(member), out, indent=1)
            out.flush()
            os.fsync(file)
        os.replace(temporary, path)
        _sync(root)
    except OSError as error:
        raise SkepError(f"{path} cannot be written: {error.strerror}") from None


def forget(root: Path, certificates: Certificates) -> None:
    """Nothing of a cluster is left on disk."""
    try:
        (root / "node.json").unlink(missing_ok=True)
        certificates.remove()
    except NotADirectoryError:
        pass
    except OSError as error:
        log.error("%s cannot be removed: after a restart this node takes itself for a member again: %s", root, error.strerror)
    shutil.rmtree(root, ignore_errors=True)


def make_folder(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    root.chmod(0o700)


def _sync(folder: Path) -> None:
    """What was renamed in it stays renamed through a power failure."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def bootstrap(root: Path, certificates: Certificates, member: Member, request: InitRequest, makers: Makers) -> None:
    """The cluster's first state and the manager's certificate, durable. Raises SkepError."""
    make_folder(root)
    now = makers.clock.now()
    authority = ca.new_root(now)
    key, csr = new_key()
    pem, certificate = ca.sign(
        authority,
        csr,
        node_id=member.node_id,
        role=Role.MANAGER,
        cluster_id=member.cluster_id,
        now=now,
        life=request.spec.ca_config.node_cert_expiry or NODE_CERT_EXPIRY,
    )
    backend = makers.backend(root)
    try:
        store = MemoryStore(backend, makers.clock)
        ops = bootstrap_cluster(
            store,
            cluster_id=member.cluster_id,
            node_id=member.node_id,
            root_ca=authority,
            rng=makers.rng,
            spec=request.spec,
            address=member.data_path,
            manager_addr=member.advertise,
            availability=request.availability,
            description=makers.describe(authority.cert),
            certificate=certificate,
            default_addr_pool=request.default_addr_pool,
            subnet_size=request.subnet_size,
            data_path_port=request.data_path_port,
        )
        store.apply(ops, by="control")
        store.flush()
    finally:
        backend.close()
    certificates.store(authority.cert, pem, key)
