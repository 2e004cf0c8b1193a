"""`docker login`: the registry itself is asked, before anything is pulled."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from image_world import images, server, small
from test_images_registry import TokenShelf, header

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
                from aiohttp import web

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
