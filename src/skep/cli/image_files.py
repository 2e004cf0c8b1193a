"""`skep pull`, `push`, `load`, `save`, `import`: images that come and go."""

from __future__ import annotations

from skep.cli.flags import Command, Flag
from skep.cli.image import platform
from skep.cli.image_names import check_trust, named
from skep.cli.image_progress import show
from skep.cli.registry import credentials
from skep.cli.shell import Failed
from skep.client import node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

    from skep.cli.flags import Values
    from skep.cli.shell import Shell

BLOCK = 1 << 18
ONE_PLATFORM = """
 Info -> Using --platform pushes only the specified platform manifest of a multi-platform image index.
         Other components, like attestations, will not be included.
         To push the complete multi-platform image, remove the --platform flag.
"""


def pull(shell: Shell, values: Values, names: list[str]) -> int:
    check_trust(values)
    image, all_tags, quiet = named(names[0]), values["all-tags"], values["quiet"]
    if all_tags and (image.tag or image.digest):
        raise Failed("tag can't be used with --all-tags/-a")
    if not all_tags and not image.tag and not image.digest and not quiet:
        shell.print(f"Using default tag: {image.wanted}")
        shell.out.flush()
    call = node.image_pull(image.name, image.wanted, credentials(shell, names[0]), values["platform"] or "", all=all_tags)
    show(shell.open(call), None if quiet else shell.out)
    shell.print(image.name + ("" if all_tags else f"@{image.digest}" if image.digest else f":{image.wanted}"))
    return 0


def push(shell: Shell, values: Values, names: list[str]) -> int:
    check_trust(values)
    image, all_tags, quiet = named(names[0]), values["all-tags"], values["quiet"]
    if image.digest:
        raise Failed("cannot push a digest reference")
    if all_tags and image.tag:
        raise Failed("tag can't be used with --all-tags/-a")
    tag = "" if all_tags else image.wanted
    if not all_tags and not image.tag and not quiet:
        shell.print(f"Using default tag: {tag}")
    chosen = platform(values["platform"]) if values["platform"] else ""
    if chosen and not quiet:
        shell.print(ONE_PLATFORM)
    shell.out.flush()
    answer = shell.open(node.image_push(image.name, tag, credentials(shell, names[0]), chosen))
    if not quiet:
        show(answer, shell.out)
        return 0
    show(answer, None)
    shell.print(f"{image.name}:{tag}" if tag else image.name)
    return 0


# archives


def parts(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while block := file.read(BLOCK):
            yield block


def opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise Failed(f"open {path}: {(error.strerror or '').lower()}") from None


def standard_input(shell: Shell) -> Iterator[bytes]:
    raw = getattr(shell.input, "buffer", None)
    if raw is None:
        return iter([shell.input.read().encode()])
    return iter(lambda: raw.read1(BLOCK), b"")


def load(shell: Shell, values: Values, _: list[str]) -> int:
    if values["input"]:
        body = parts(opened(values["input"]))
    elif shell.input.isatty():
        raise Failed("requested load from stdin, but stdin is empty")
    else:
        body = standard_input(shell)
    quiet = values["quiet"] or not shell.out.isatty()
    chosen = platform(values["platform"]) if values["platform"] else ""
    show(shell.open(node.image_load(body, quiet, chosen)), shell.out)
    return 0


def save(shell: Shell, values: Values, names: list[str]) -> int:
    chosen = platform(values["platform"]) if values["platform"] else ""
    write_out(shell, node.image_save(names, chosen), values["output"] or "", "save image")
    return 0


def write_out(shell: Shell, call: Any, path: str, what: str) -> None:
    """A tar, to a file that appears when it is whole, or to the output, which must not be a terminal."""
    import os

    if not path:
        if shell.out.isatty():
            raise Failed("cowardly refusing to save to a terminal. Use the -o flag or redirect")
        for block in shell.open(call).blocks():
            write_bytes(shell, block)
        return
    try:
        check_output(path)
    except Failed as error:
        raise Failed(f"failed to {what}: {error}") from None
    partial = f"{path}.{os.getpid()}.tmp"
    answer = shell.open(call)
    try:
        with open(partial, "wb") as file:
            os.chmod(partial, 0o600)
            for block in answer.blocks():
                file.write(block)
        os.replace(partial, path)
    except OSError as error:
        raise Failed(f"failed to {what}: {error}") from None
    finally:
        if os.path.exists(partial):
            os.unlink(partial)


def check_output(path: str) -> None:
    import os

    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise Failed(f"invalid output path: stat {folder}: no such file or directory")
    if os.path.isdir(path):
        raise Failed(f'invalid output path: "{path}" must be a regular file')


def write_bytes(shell: Shell, data: bytes) -> None:
    from skep.cli.service_logs import write

    write(shell, 1, data)


def import_archive(shell: Shell, values: Values, words: list[str]) -> int:
    source, reference = words[0], words[1] if len(words) > 1 else ""
    if reference:
        named(reference)
    body: Iterator[bytes] | None = None
    if source == "-":
        body = standard_input(shell)
    elif not source.startswith(("http://", "https://")):
        body, source = parts(opened(source)), "-"
    call = node.image_import(source, reference, values["message"] or "", values["change"], values["platform"] or "", body)
    show(shell.open(call), shell.out)
    return 0


PLATFORM = 'only the given platform variant. Formatted as "os[/arch[/variant]]" (e.g., "linux/amd64")'

COMMANDS = {
    "image pull": Command(
        "image pull",
        "[OPTIONS] NAME[:TAG|@DIGEST]",
        "Download an image from a registry",
        pull,
        (
            Flag("all-tags", "bool", "Download all tagged images in the repository", "a"),
            Flag("disable-content-trust", "bool", "Skip image verification", default="true"),
            Flag("platform", "string", "Set platform if server is multi-platform capable"),
            Flag("quiet", "bool", "Suppress verbose output", "q"),
        ),
        least=1,
        most=1,
        aliases=("image pull", "pull"),
    ),
    "image push": Command(
        "image push",
        "[OPTIONS] NAME[:TAG]",
        "Upload an image to a registry",
        push,
        (
            Flag("all-tags", "bool", "Push all tags of an image to the repository", "a"),
            Flag("disable-content-trust", "bool", "Skip image signing", default="true"),
            Flag(
                "platform",
                "string",
                "Push a platform-specific manifest as a single-platform image to the registry.\nImage index won't be pushed, meaning that "
                "other manifests, including attestations won't be preserved.\n'os[/arch[/variant]]': Explicit platform (eg. linux/amd64)",
            ),
            Flag("quiet", "bool", "Suppress verbose output", "q"),
        ),
        least=1,
        most=1,
        aliases=("image push", "push"),
    ),
    "image load": Command(
        "image load",
        "[OPTIONS]",
        "Load an image from a tar archive or STDIN",
        load,
        (
            Flag("input", "string", "Read from tar archive file, instead of STDIN", "i"),
            Flag("platform", "string", f"Load {PLATFORM}"),
            Flag("quiet", "bool", "Suppress the load output", "q"),
        ),
        aliases=("image load", "load"),
    ),
    "image save": Command(
        "image save",
        "[OPTIONS] IMAGE [IMAGE...]",
        "Save one or more images to a tar archive (streamed to STDOUT by default)",
        save,
        (Flag("output", "string", "Write to a file, instead of STDOUT", "o"), Flag("platform", "string", f"Save {PLATFORM}")),
        least=1,
        most=None,
        aliases=("image save", "save"),
    ),
    "image import": Command(
        "image import",
        "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
        "Import the contents from a tarball to create a filesystem image",
        import_archive,
        (
            Flag("change", "list", "Apply Dockerfile instruction to the created image", "c"),
            Flag("message", "string", "Set commit message for imported image", "m"),
            Flag("platform", "string", "Set platform if server is multi-platform capable"),
        ),
        least=1,
        most=2,
        aliases=("image import", "import"),
    ),
}
