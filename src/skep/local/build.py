"""OCI images from files, without a Dockerfile and without the internet, and their push into a registry.

The same files give the same digests: entries are sorted, times and owners fixed, gzip writes no time.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from skep.errors import SkepError

EPOCH = 1704067200
"""2024-01-01, the time of every file in a built image."""
CREATED = "2024-01-01T00:00:00Z"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64", "ppc64le": "ppc64le"}
TIMEOUT = 60.0


@dataclass(frozen=True)
class Entry:
    """A file, or with the fitting type bits in `mode` a directory, symbolic link, FIFO or device."""

    data: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    target: str = ""
    """Of a symbolic link."""
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)


def text(content: str, *, executable: bool = False) -> Entry:
    return Entry(content.encode(), stat.S_IFREG | (0o755 if executable else 0o644))


def program(data: bytes) -> Entry:
    return Entry(data, stat.S_IFREG | 0o755)


def directory(mode: int = 0o755) -> Entry:
    return Entry(mode=stat.S_IFDIR | mode)


def link(target: str) -> Entry:
    return Entry(mode=stat.S_IFLNK | 0o777, target=target)


def fifo(mode: int = 0o644) -> Entry:
    return Entry(mode=stat.S_IFIFO | mode)


_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def layer(files: Mapping[str, Entry]) -> bytes:
    """A layer's tar. Parent directories that are not named are added."""
    whole = dict(files)
    for path in files:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            whole.setdefault("/".join(parts[:depth]), directory())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(whole):
            entry = whole[path]
            info = tarfile.TarInfo(path)
            info.type = _TYPES[stat.S_IFMT(entry.mode)]
            info.mode, info.mtime, info.uid, info.gid = stat.S_IMODE(entry.mode), EPOCH, entry.uid, entry.gid
            info.size, info.linkname = len(entry.data), entry.target
            info.devmajor, info.devminor = entry.device
            tar.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


@dataclass(frozen=True)
class Built:
    """An image ready to be pushed: blobs by digest, and the manifest that names them."""

    manifest: bytes
    config: bytes
    blobs: dict[str, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def id(self) -> str:
        return sha256(self.config)


def image(
    layers: Sequence[bytes],
    *,
    entrypoint: Sequence[str] = (),
    cmd: Sequence[str] = (),
    env: Sequence[str] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",),
    ports: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    more: Mapping[str, object] | None = None,
    architecture: str = "",
) -> Built:
    """From tars, lowest first. `more`: other keys of the image's config (`WorkingDir`, `User`, `StopSignal`...)."""
    run: dict[str, object] = {"Env": list(env)}
    run |= {"Entrypoint": list(entrypoint)} if entrypoint else {}
    run |= {"Cmd": list(cmd)} if cmd else {}
    run |= {"ExposedPorts": {port: {} for port in ports}} if ports else {}
    run |= {"Labels": dict(labels)} if labels else {}
    run |= dict(more or {})
    packed = [gzip.compress(tar, 6, mtime=0) for tar in layers]
    config = _json(
        {
            "architecture": architecture or ARCHITECTURES.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "created": CREATED,
            "config": run,
            "rootfs": {"type": "layers", "diff_ids": [sha256(tar) for tar in layers]},
            "history": [{"created": CREATED, "created_by": "built from files"} for _ in layers],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {"mediaType": DOCKER_CONFIG, "size": len(config), "digest": sha256(config)},
            "layers": [{"mediaType": DOCKER_LAYER, "size": len(blob), "digest": sha256(blob)} for blob in packed],
        }
    )
    return Built(manifest, config, {sha256(config): config} | {sha256(blob): blob for blob in packed})


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def push_image(registry_url: str, name: str, tag: str, built: Built, *, authorization: str = "") -> str:
    """Through the registry's API: what it has is not sent again. Returns the manifest's digest.

    `registry_url` is `http://host:port`; `authorization` the header's value. Raises SkepError with the registry's answer.
    """
    with Upload(registry_url, authorization) as upload:
        for digest, blob in built.blobs.items():
            upload.blob(name, digest, blob)
        upload.manifest(name, tag, built.manifest, DOCKER_MANIFEST)
    return built.digest


class Upload:
    """A connection to a registry for pushing. Use with `with`."""

    def __init__(self, registry_url: str, authorization: str = "") -> None:
        parts = urlsplit(registry_url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT)
        self._headers = {"Authorization": authorization} if authorization else {}

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def blob(self, name: str, digest: str, data: bytes) -> None:
        status, _, _ = self._call("HEAD", f"/v2/{name}/blobs/{digest}")
        if status == 200:
            return
        status, location, answer = self._call("POST", f"/v2/{name}/blobs/uploads/")
        self._expect(status, 202, answer)
        where = urlsplit(location)
        query = f"{where.query}&digest={digest}" if where.query else f"digest={digest}"
        status, _, answer = self._call("PUT", f"{where.path}?{query}", data, "application/octet-stream")
        self._expect(status, 201, answer)

    def manifest(self, name: str, tag: str, manifest: bytes, media_type: str) -> None:
        status, _, answer = self._call("PUT", f"/v2/{name}/manifests/{tag}", manifest, media_type)
        self._expect(status, 201, answer)

    def _call(self, method: str, target: str, body: bytes | None = None, kind: str = "") -> tuple[int, str, bytes]:
        headers = self._headers | ({"Content-Type": kind} if kind else {})
        try:
            self._connection.request(method, target, body, headers)
            answer = self._connection.getresponse()
            return answer.status, answer.headers.get("Location", ""), answer.read(1 << 20)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise SkepError(f"{method} {target.partition('?')[0]}: {error}") from None

    def _expect(self, status: int, wanted: int, answer: bytes) -> None:
        if status != wanted:
            raise SkepError(f"the registry refuses: {status} {answer[:300].decode(errors='replace').strip()}")
