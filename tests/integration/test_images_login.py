"""`docker login`: the registry itself is asked, before anything is pulled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from image_world import Shelf, images, server, small
from test_images_registry import TokenShelf, header

from skep.engine.oci.reference import registry_of
from skep.errors import SkepError, Unauthorized
from skep.local.registry import RegistryServer

pytestmark = pytest.mark.root


def test_a_registry_with_passwords_says_who_may(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text("ann:$2b$04$GKblKA/v7k26Hr/kI68GPusR32kiUHbUBzoHSX6Zfj0.mYpEcYqHG\n")

    async def main(address: str) -> None:
        node = images(tmp_path / "node")
        await node.login(address, header(username="ann", password="s3cret"))
        await node.login(f"http://{address}/v1/", header(username="ann", password="s3cret"))
        for wrong in (header(username="ann", password="guess"), header(username="bob", password="s3cret")):
            with pytest.raises(Unauthorized, match='/v2/": unauthorized: incorrect username or password'):
                await node.login(address, wrong)

    with RegistryServer(tmp_path / "registry", htpasswd=tmp_path / "htpasswd") as registry:
        asyncio.run(main(registry.address))


def test_a_token_server_is_asked_for_no_scope(tmp_path: Path) -> None:
    class Shelf(TokenShelf):
        async def answer(self, request):  # type: ignore[no-untyped-def]
            if request.headers.get("Authorization") == "Bearer for:":
                return web.json_response({})
            return await super().answer(request)

    async def main() -> None:
        shelf = Shelf(small("token"))
        async with server(shelf) as shelf.address:
            node = images(tmp_path)
            await node.login(shelf.address, header(username="ann", password="s3cret"))
            with pytest.raises(Unauthorized, match="incorrect username or password"):
                await node.login(shelf.address, header(username="ann", password="guess"))

    asyncio.run(main())


def test_who_is_no_registry_takes_no_login(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(SkepError, match="connection refused"):
            await images(tmp_path).login("127.0.0.1:1", header(username="ann", password="s3cret"))
        with pytest.raises(SkepError, match="invalid reference format"):
            await images(tmp_path).login("BAD HOST", header(username="ann", password="s3cret"))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("server", "domain"),
    [
        ("", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("shelf", "shelf"),
        ("https://shelf/v2/", "shelf"),
        ("shelf:5000", "shelf:5000"),
        ("localhost", "localhost"),
        ("shelf.example", "shelf.example"),
    ],
)
def test_a_host_without_a_dot_is_asked_itself_and_not_docker_hub(server: str, domain: str) -> None:
    assert registry_of(server).domain == domain


@pytest.mark.parametrize("path", ["/v2/", "/v2/a/b/blobs/"])
@pytest.mark.parametrize("scheme", ["Bearer", "Basic"])
def test_whoever_the_registry_sends_us_to_does_not_get_the_password(path: str, scheme: str, tmp_path: Path) -> None:
    class Elsewhere(Shelf):
        address = ""

        async def answer(self, request: web.Request) -> web.StreamResponse:
            if request.path == "/token":
                return web.json_response({"token": "caught"})
            challenge = f'{scheme} realm="http://{self.address}/token",service="x"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    class Sending(TokenShelf):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            if request.path.startswith(path):
                raise web.HTTPTemporaryRedirect(f"http://{other.address}/x")
            return await super().answer(request)

    async def main() -> None:
        shelf = Sending(small("sending"))
        async with server(shelf) as shelf.address, server(other) as other.address:
            node, auth = images(tmp_path), header(username="ann", password="s3cret")
            for work in (node.pull(f"{shelf.address}/a/b", auth=auth), node.login(shelf.address, auth)):
                with suppress(SkepError):
                    await work
            assert other.count("/x")
            assert not [told for _, told in other.seen if told], "who we are"

    other = Elsewhere(small("other"))
    asyncio.run(main())


def test_what_cannot_be_sent_is_an_error_in_one_line(tmp_path: Path) -> None:
    class Named(Shelf):
        realm = ""

        async def answer(self, request: web.Request) -> web.StreamResponse:
            return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{self.realm}",service="x"'})

    async def main() -> None:
        shelf = Named(small("named"))
        async with server(shelf) as address:
            node = images(tmp_path)
            shelf.realm = f"http://eve:guess@{address}/token"
            with pytest.raises(SkepError, match='^Get "http://127[^"@]*/token": Cannot combine'):
                await node.login(address, header(username="ann", password="s3cret"))
            with pytest.raises(SkepError, match='/v2/": .* detected in headers'):
                await node.login(address, header(registrytoken="two\nlines"))

    asyncio.run(main())
