"""Manifests, indexes and image configs as registries send them; the choice of a platform. Pure.

What comes in is bounded and checked before it is used: a document that could be read as two kinds is refused (CVE-2021-41190), and digests
are computed here, never believed.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from skep.engine.base import ImageConfig
from skep.engine.oci.reference import check_digest
from skep.errors import Invalid, NotFound, SkepError

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPTED = (DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX, OCI_MANIFEST)

MAX_MANIFEST = 4 << 20
MAX_CONFIG = 8 << 20
MAX_LAYERS = 127
"""overlayfs takes more, but Docker does not, and every layer costs at each look-up."""

_COMPRESSION = {
    OCI_LAYER: "gzip",
    DOCKER_LAYER: "gzip",
    "application/vnd.oci.image.layer.v1.tar": "",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}
_COMPONENT = re.compile(r"^[A-Za-z0-9_.-]+$")
_SYSTEMS = frozenset("aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris windows zos".split())
_ARCHITECTURES = frozenset(
    "386 amd64 amd64p32 arm armbe arm64 arm64be loong64 mips mipsle mips64 mips64le mips64p32 mips64p32le ppc ppc64 ppc64le "
    "riscv riscv64 s390 s390x sparc sparc64 wasm".split()
)
"""What Go's tools know."""
_OTHER_NAMES = {
    "aarch64": "arm64",
    "x86_64": "amd64",
    "x86-64": "amd64",
    "i386": "386",
    "armhf": "arm/v7",
    "armel": "arm/v6",
}
_MACHINES = {"x86_64": ("amd64", ""), "aarch64": ("arm64", "v8"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"), "i686": ("386", "")}


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None

    @property
    def short(self) -> str:
        """Docker's id of a layer in progress lines: the first 12 hex digits."""
        return self.digest.partition(":")[2][:12]

    @property
    def compression(self) -> str:
        """gzip, zstd or empty. Raises SkepError for what is no layer of a file system."""
        found = _COMPRESSION.get(self.media_type)
        if found is None:
            raise SkepError(f"unsupported layer media type {self.media_type or '(none)'} of {self.digest}")
        return found


class _Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One image of one platform, or (with `manifests`) a list of them."""

    media_type: str
    digest: str
    raw: bytes
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()

    @property
    def index(self) -> bool:
        return self.config is None


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def decode(raw: bytes, content_type: str) -> Manifest:
    """Raises SkepError for what is no manifest that can be used."""
    try:
        found = msgspec.json.decode(raw, type=_Document)
    except msgspec.MsgspecError as error:
        raise SkepError(f"invalid manifest: {error}") from None
    stated = content_type.partition(";")[0].strip()
    media_type = found.media_type or (stated if stated in ACCEPTED else "")
    if not media_type:
        media_type = OCI_INDEX if found.manifests is not None else OCI_MANIFEST
    if media_type not in ACCEPTED or found.schema_version != 2:
        raise SkepError(f"unsupported manifest media type {media_type or stated} (schema version {found.schema_version})")
    for descriptor in [*(found.layers or ()), *(found.manifests or ()), *([found.config] if found.config else ())]:
        check_digest(descriptor.digest)
        if not descriptor.digest.startswith("sha256:"):
            raise SkepError(f"unsupported digest algorithm: {descriptor.digest}")
        if descriptor.size < 0:
            raise SkepError(f"invalid manifest: negative size of {descriptor.digest}")
    digest = digest_of(raw)
    if media_type in (OCI_INDEX, DOCKER_LIST):
        if found.manifests is None or found.layers is not None or found.config is not None:
            raise SkepError("invalid manifest: an index must have manifests, and neither config nor layers")
        return Manifest(media_type=media_type, digest=digest, raw=raw, manifests=tuple(found.manifests))
    if found.config is None or found.layers is None or found.manifests is not None:
        raise SkepError("invalid manifest: an image must have config and layers, and no manifests")
    if len(found.layers) > MAX_LAYERS:
        raise SkepError(f"the image has {len(found.layers)} layers; at most {MAX_LAYERS} can be mounted")
    return Manifest(media_type=media_type, digest=digest, raw=raw, config=found.config, layers=tuple(found.layers))


def host_platform(machine: str) -> Platform:
    """From `uname -m`."""
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform(os="linux", architecture=architecture, variant=variant)


def parse_platform(text: str, machine: str) -> Platform:
    """`linux/arm64/v8`, `arm64`, `linux`; empty means this host's. Raises Invalid with Docker's sentences."""
    if not text:
        return host_platform(machine)
    parts = text.split("/")
    if len(parts) > 3:
        raise Invalid(f'"{text[:200]}": cannot parse platform specifier: invalid argument')
    for part in parts:
        if not _COMPONENT.fullmatch(part):
            shown = f'"{part[:200]}" is an invalid component of "{text[:200]}"'
            raise Invalid(f'{shown}: platform specifier component must match "{_COMPONENT.pattern}": invalid argument')
    parts = text.lower().split("/")
    if len(parts) == 1:
        if parts[0] in _SYSTEMS:
            return msgspec.structs.replace(host_platform(machine), os=parts[0])
        if parts[0] not in _ARCHITECTURES and parts[0] not in _OTHER_NAMES:
            raise Invalid(f'"{text}": unknown operating system or architecture: invalid argument')
        parts = ["linux", parts[0]]
    if parts[1] in _OTHER_NAMES:
        parts[1:2] = _OTHER_NAMES[parts[1]].split("/")
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) > 2 else "")


def choose(manifest: Manifest, wanted: Platform) -> Descriptor:
    """The entry of an index for this platform: the exact variant first, then one without, then any of the architecture."""
    fitting = [
        entry
        for entry in manifest.manifests
        if entry.platform and (entry.platform.os, entry.platform.architecture) == (wanted.os, wanted.architecture)
    ]
    for test in (wanted.variant, ""):
        for entry in fitting:
            if entry.platform and entry.platform.variant == test:
                return entry
    if fitting and not wanted.variant:
        return fitting[0]
    raise NotFound(f"no matching manifest for {wanted} in the manifest list entries")


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`config` of an image config, null values left out."""

    entrypoint: list[str] = msgspec.field(name="Entrypoint", default_factory=list)
    cmd: list[str] = msgspec.field(name="Cmd", default_factory=list)
    env: list[str] = msgspec.field(name="Env", default_factory=list)
    working_dir: str = msgspec.field(name="WorkingDir", default="")
    user: str = msgspec.field(name="User", default="")
    labels: dict[str, str] = msgspec.field(name="Labels", default_factory=dict)
    exposed_ports: dict[str, Any] = msgspec.field(name="ExposedPorts", default_factory=dict)
    volumes: dict[str, Any] = msgspec.field(name="Volumes", default_factory=dict)
    stop_signal: str = msgspec.field(name="StopSignal", default="")
    healthcheck: dict[str, Any] | None = msgspec.field(name="Healthcheck", default=None)
    on_build: list[str] = msgspec.field(name="OnBuild", default_factory=list)
    shell: list[str] = msgspec.field(name="Shell", default_factory=list)


class _RootFS(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "layers"
    diff_ids: list[str] = []


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """An image config (OCI image-spec config.md)."""

    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    created: str = ""
    author: str = ""
    comment: str = ""
    docker_version: str = ""
    config: RunConfig = RunConfig()
    rootfs: _RootFS = _RootFS()
    history: list[dict[str, Any]] = []

    def run(self) -> ImageConfig:
        c = self.config
        return ImageConfig(
            entrypoint=tuple(c.entrypoint),
            cmd=tuple(c.cmd),
            env=tuple(c.env),
            working_dir=c.working_dir,
            user=c.user,
            labels=c.labels,
            exposed_ports=tuple(sorted(c.exposed_ports)),
            volumes=tuple(sorted(c.volumes)),
            stop_signal=c.stop_signal,
            healthcheck=c.healthcheck,
            on_build=tuple(c.on_build),
            shell=tuple(c.shell),
        )


def decode_config(raw: bytes) -> Config:
    """Docker writes `null` for what is absent; msgspec has to be spared it."""
    try:
        config = msgspec.convert(_without_nulls(msgspec.json.decode(raw)), type=Config)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise SkepError(f"invalid image config: {error}") from None
    for diff_id in config.rootfs.diff_ids:
        check_digest(diff_id)
        if not diff_id.startswith("sha256:"):
            raise SkepError(f"unsupported digest algorithm: {diff_id}")
    return config


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value if item is not None]
    return value
