"""Registries that ask for tokens, send elsewhere, break off, lie, or are only mirrors; and pulls that are interrupted."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from image_world import Lines, Shelf, images, leftovers, server, small

from skep.errors import Forbidden, NotFound, SkepError, Unauthorized
from skep.local.build import Built, image, layer, text

pytestmark = pytest.mark.root


def header(**fields: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


class TokenShelf(Shelf):
    """Wants a bearer token, which it gives out itself to whoever knows the password."""

    address = ""
    scope_denied = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            form = parse_qs((await request.read()).decode()) if request.method == "POST" else {}
            basic = base64.b64encode(b"ann:s3cret").decode()
            if form.get("refresh_token") == ["refresh"] or request.headers.get("Authorization") == f"Basic {basic}":
                asked = form.get("scope", [request.query.get("scope", "")])[0]
                return web.json_response({"access_token" if form else "token": f"for:{asked}"})
            return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401)
        if request.headers.get("Authorization") == "Bearer for:repository:a/b:pull":
            return await super().answer(request)
        error = ',error="insufficient_scope"' if self.scope_denied and request.path != "/v2/" else ""
        challenge = f'Bearer realm="http://{self.address}/token",service="shelf"{error}'
        return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401, headers={"WWW-Authenticate": challenge})


def test_a_token_is_fetched_with_password_or_refresh_token(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = TokenShelf(small("token"))
        async with server(shelf) as shelf.address:
            node, name = images(tmp_path), f"{shelf.address}/a/b"
            await node.pull(name, auth=header(username="ann", password="s3cret"))
            await node.resolve(name, auth=header(identitytoken="refresh"))
            await node.resolve(name, auth=header(registrytoken="for:repository:a/b:pull"))
            assert shelf.count("/token") == 2
            with pytest.raises(Unauthorized, match="unauthorized: incorrect username or password"):
                await node.resolve(name, auth=header(username="ann", password="guess"))
            assert all("s3cret" not in path for path, _ in shelf.seen)

    asyncio.run(main())


def test_access_denied_in_dockers_words(tmp_path: Path) -> None:
    class Denying(TokenShelf):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            if request.path == "/token":
                return web.json_response({"token": "for:nothing"})
            return await super().answer(request)

    async def main() -> None:
        shelf = Denying(small("denied"))
        shelf.scope_denied = True
        async with server(shelf) as shelf.address:
            name = f"{shelf.address}/a/b"
            with pytest.raises(NotFound) as caught:
                await images(tmp_path).pull(name)
            assert caught.value.message == (
                f"pull access denied for {name}, repository does not exist or may require 'docker login': "
                "denied: requested access to the resource is denied"
            )
            with pytest.raises(Forbidden, match="^denied: requested access to the resource is denied$"):
                await images(tmp_path).resolve(name)

    asyncio.run(main())


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    built = image([layer({"big": text(os.urandom(200_000).hex())})])
    big = max(built.blobs.values(), key=len)

    class Breaking(Shelf):
        ranges: list[str] = []

        async def answer(self, request: web.Request) -> web.StreamResponse:
            if not request.path.endswith(json.loads(built.manifest)["layers"][0]["digest"]):
                return await super().answer(request)
            self.ranges.append(request.headers.get("Range", ""))
            start = int(self.ranges[-1][6:-1] or 0) if self.ranges[-1] else 0
            answer = web.StreamResponse(status=206 if start else 200)
            if start:
                answer.headers["Content-Range"] = f"bytes {start}-{len(big) - 1}/{len(big)}"
            answer.content_length = len(big) - start
            await answer.prepare(request)
            end = len(big) if len(self.ranges) == 3 else start + 60_000
            await answer.write(big[start:end])
            if end < len(big):
                assert request.transport is not None
                request.transport.close()
            return answer

    async def main() -> None:
        shelf = Breaking(built)
        async with server(shelf) as address:
            await images(tmp_path).pull(f"{address}/a/b")
            assert len(shelf.ranges) == 3 and shelf.ranges[0] == "" and shelf.ranges[1] == "bytes=60000-"

    asyncio.run(main())


def test_a_registry_that_never_stops_failing_is_given_up(tmp_path: Path) -> None:
    class Failing(Shelf):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            return await super().answer(request) if request.path == "/v2/" else web.Response(status=503)

    async def main() -> None:
        shelf = Failing(small())
        async with server(shelf) as address:
            with pytest.raises(SkepError, match="received unexpected HTTP status: 503 Service Unavailable"):
                await images(tmp_path).pull(f"{address}/a/b")
            assert shelf.count("/manifests/") == 4

    asyncio.run(main())


@pytest.mark.parametrize("extra", [1, -1])
def test_a_blob_of_another_length_than_stated_is_refused(extra: int, tmp_path: Path) -> None:
    class Lying(Shelf):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            digest = json.loads(self.built.manifest)["layers"][0]["digest"]
            if request.path.endswith(digest):
                blob = self.built.blobs[digest]
                return web.Response(body=blob + b"x" if extra > 0 else blob[:-1])
            return await super().answer(request)

    async def main() -> None:
        async with server(Lying(small("length"))) as address:
            with pytest.raises(SkepError, match="is longer than the" if extra > 0 else "unexpected EOF after"):
                await images(tmp_path).pull(f"{address}/a/b")
            assert leftovers(tmp_path) == []

    asyncio.run(main())


def test_endless_answers_are_cut_off(tmp_path: Path) -> None:
    class Endless(Shelf):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            if "/manifests/" in request.path:
                return web.Response(body=b" " * (5 << 20))
            return await super().answer(request)

    async def main() -> None:
        async with server(Endless(small())) as address:
            with pytest.raises(SkepError, match="answered with more than 4194304 bytes"):
                await images(tmp_path).pull(f"{address}/a/b")

    asyncio.run(main())


def test_credentials_do_not_follow_a_redirect_to_another_host(tmp_path: Path) -> None:
    elsewhere = Shelf(small("redirect"))

    class Sending(TokenShelf):
        other = ""

        async def answer(self, request: web.Request) -> web.StreamResponse:
            if "/blobs/" in request.path:
                raise web.HTTPTemporaryRedirect(f"http://{self.other}{request.path}")
            return await super().answer(request)

    async def main() -> None:
        shelf = Sending(small("redirect"))
        async with server(elsewhere) as shelf.other, server(shelf) as shelf.address:
            await images(tmp_path).pull(f"{shelf.address}/a/b", auth=header(username="ann", password="s3cret"))
        assert elsewhere.count("/blobs/") == 2 and all(not sent for _, sent in elsewhere.seen)

    asyncio.run(main())


def test_a_mirror_is_asked_first_and_never_gets_the_password(tmp_path: Path) -> None:
    async def main() -> None:
        mirror, shelf = Shelf(small("mirror")), TokenShelf(small("mirror"))
        async with server(mirror) as address, server(shelf) as shelf.address:
            node = images(tmp_path, mirrors={shelf.address: [f"http://{address}"]})
            await node.pull(f"{shelf.address}/a/b", auth=header(username="ann", password="s3cret"))
            assert shelf.seen == [] and mirror.count("/blobs/") == 2
            assert all(not sent for _, sent in mirror.seen)

    asyncio.run(main())


def test_a_mirror_that_fails_midway_is_left_for_the_registry(tmp_path: Path) -> None:
    class NoBlobs(Shelf):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            return await super().answer(request) if "/blobs/" not in request.path else web.Response(status=404)

    async def main() -> None:
        bad, good = NoBlobs(small("midway")), Shelf(small("midway"))
        async with server(bad) as first, server(good) as address:
            node = images(tmp_path, mirrors={address: ["http://127.0.0.1:1", f"http://{first}"]})
            assert (await node.pull(f"{address}/a/b")).id == good.built.id
            assert bad.count("/manifests/") == 1

    asyncio.run(main())


class IndexShelf(Shelf):
    """Serves `a/b:latest` as an index over several images."""

    def __init__(self, entries: dict[str, Built]) -> None:
        super().__init__(next(iter(entries.values())))
        self.entries = entries
        self.index = json.dumps(
            {
                "schemaVersion": 2,
                "manifests": [
                    {
                        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                        "digest": built.digest,
                        "size": len(built.manifest),
                        "platform": dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False)),
                    }
                    for platform, built in entries.items()
                ],
            }
        ).encode()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v2/a/b/manifests/latest":
            return web.Response(body=self.index, content_type="application/vnd.oci.image.index.v1+json")
        for built in self.entries.values():
            self.built = built
            found = await super().answer(request)
            if found.status == 200:
                return found
        return found


def test_an_index_gives_the_image_of_the_platform(tmp_path: Path) -> None:
    def of(architecture: str) -> Built:
        return image([layer({"arch": text(architecture)})], architecture=architecture.split("/")[0])

    async def main() -> None:
        shelf = IndexShelf({f"linux/{a}": of(a) for a in ("amd64", "arm64/v8", "arm/v6", "arm/v7", "s390x")})
        async with server(shelf) as address:
            node, name = images(tmp_path), f"{address}/a/b"
            for asked, given in {"linux/arm64": "arm64/v8", "linux/arm/v7": "arm/v7", "s390x": "s390x", "amd64": "amd64"}.items():
                found = await node.pull(name, platform=asked)
                assert found.id == of(given).id, asked
            assert found.digests == (f"{name}@sha256:{hashlib.sha256(shelf.index).hexdigest()}",)
            with pytest.raises(NotFound, match="no matching manifest for linux/riscv64 in the manifest list entries"):
                await node.pull(name, platform="linux/riscv64")
            descriptor, platforms = await node.resolve(name)
            assert descriptor["mediaType"] == "application/vnd.oci.image.index.v1+json"
            assert {"architecture": "arm", "os": "linux", "variant": "v7"} in platforms and len(platforms) == 5

    asyncio.run(main())


def test_a_document_that_is_two_things_at_once_is_refused(tmp_path: Path) -> None:
    both = json.loads(small().manifest) | {"manifests": []}
    del both["mediaType"]

    class Ambiguous(Shelf):
        kind = ""

        async def answer(self, request: web.Request) -> web.StreamResponse:
            if "/manifests/" in request.path:
                return web.Response(body=json.dumps(both).encode(), content_type=self.kind)
            return await super().answer(request)

    async def main() -> None:
        shelf = Ambiguous(small())
        async with server(shelf) as address:
            for shelf.kind in ("application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"):
                with pytest.raises(SkepError, match="invalid manifest: an (index|image) must have"):
                    await images(tmp_path).pull(f"{address}/a/b")

    asyncio.run(main())


class Hanging(Shelf):
    """Sends half of a layer and then nothing, until told to go on."""

    def __init__(self, built: Built) -> None:
        super().__init__(built)
        self.halfway = asyncio.Event()
        self.release = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        digest = json.loads(self.built.manifest)["layers"][0]["digest"]
        if self.release.is_set() or not request.path.endswith(digest):
            return await super().answer(request)
        answer = web.StreamResponse()
        answer.content_length = len(self.built.blobs[digest])
        await answer.prepare(request)
        await answer.write(self.built.blobs[digest][: answer.content_length // 2])
        self.halfway.set()
        await self.release.wait()
        return answer


def big() -> Built:
    return image([layer({f"f{n}": text(os.urandom(20_000).hex()) for n in range(50)})])


def tars() -> set[str]:
    """Our own tar children."""
    found = subprocess.run(["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True).stdout
    return {line for line in found.splitlines() if line.startswith("tar ")}


def test_a_cancelled_pull_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = Hanging(big())
        node = images(tmp_path)
        async with server(shelf) as address, asyncio.TaskGroup() as group:
            pull = group.create_task(node.pull(f"{address}/a/b"))
            await shelf.halfway.wait()
            assert leftovers(tmp_path) and tars()
            pull.cancel()
            await asyncio.wait([pull])
            assert pull.cancelled() and not leftovers(tmp_path) and not tars() and not node.all()
            shelf.release.set()
            assert (await node.pull(f"{address}/a/b")).id == shelf.built.id

    asyncio.run(main())


def test_who_waits_for_anothers_download_goes_on_when_that_is_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = Hanging(big())
        node, lines = images(tmp_path), Lines()
        async with server(shelf) as address, asyncio.TaskGroup() as group:
            first = group.create_task(node.pull(f"{address}/a/b"))
            await shelf.halfway.wait()
            second = group.create_task(node.pull(f"{address}/a/b", on_progress=lines))
            await lines.some.wait()
            shelf.release.set()
            first.cancel()
            assert (await second).id == shelf.built.id
        assert leftovers(tmp_path) == []

    asyncio.run(main())


CHILD = """
import asyncio, sys
from pathlib import Path
from image_world import images
asyncio.run(images(Path(sys.argv[1])).pull(sys.argv[2]))
"""


def test_after_a_kill_9_the_next_start_sweeps_up(tmp_path: Path) -> None:
    async def main() -> None:
        shelf = Hanging(big())
        async with server(shelf) as address:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CHILD, str(tmp_path), f"{address}/a/b", env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
            )
            await shelf.halfway.wait()
            child.send_signal(signal.SIGKILL)
            await child.wait()
            assert leftovers(tmp_path)
            node = images(tmp_path)
            assert leftovers(tmp_path) == [] and node.all() == []
            shelf.release.set()
            assert (await node.pull(f"{address}/a/b")).id == shelf.built.id

    asyncio.run(main())
