"""A client of the OCI distribution API: manifests and blobs of one repository, from its registry or a mirror of it.

Everything is bounded: attempts, redirects, waiting, sizes. What has a digest is checked against it. Credentials go to the registry
itself and to the token server that it names, never to a mirror, and never over a redirect to another host.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NoReturn

import aiohttp
import msgspec
from yarl import URL

from skep.clock import MILLISECOND, SECOND, Clock
from skep.engine.oci.auth import Challenge, Credentials, challenges
from skep.engine.oci.lookup import Lookup
from skep.engine.oci.manifest import ACCEPTED, MAX_MANIFEST, Descriptor, Manifest, decode, digest_of
from skep.engine.oci.reference import Reference
from skep.engine.oci.transport import ConnectionFailed, Endpoint, RegistryError, describe, endpoints, proxy_for
from skep.errors import Invalid, SkepError

ATTEMPTS = 4
PAUSES = (200 * MILLISECOND, 600 * MILLISECOND, 1500 * MILLISECOND)
REDIRECTS = 5
CHUNK = 256 << 10
MAX_ANSWER = 1 << 20
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
AGENT = "skep/0.1"

Body = bytes | Callable[[], AsyncIterator[bytes]] | None
"""Of a request; what is streamed is made anew for each attempt."""
_BROKEN = (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, TimeoutError, ConnectionError)


class _ErrorItem(msgspec.Struct, frozen=True, kw_only=True):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True, kw_only=True):
    errors: list[_ErrorItem] = []


class _Token(msgspec.Struct, frozen=True, kw_only=True):
    token: str = ""
    access_token: str = ""


class Registry:
    """One repository on one registry, as long as a pull lasts. Use with `async with`."""

    def __init__(
        self,
        reference: Reference,
        *,
        clock: Clock,
        credentials: Credentials | None = None,
        insecure: Collection[str] = (),
        mirrors: Mapping[str, Sequence[str]] | None = None,
        actions: str = "pull",
    ) -> None:
        """`actions`: what the token server is asked to allow; empty: nothing but to say who we are."""
        self._reference = reference
        self._actions = actions
        self._clock = clock
        self._credentials = credentials or Credentials()
        self._endpoints = endpoints(reference.domain, insecure, mirrors or {})
        self._endpoint: Endpoint | None = None
        self._authorization: dict[str, str] = {}
        """Header value by endpoint."""

    async def __aenter__(self) -> Registry:
        connector, headers = aiohttp.TCPConnector(resolver=Lookup()), {"User-Agent": AGENT, "Accept-Encoding": "identity"}
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=TIMEOUT, read_bufsize=1 << 20, headers=headers
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    @property
    def repository(self) -> str:
        """`registry:5000/a/b`."""
        return self._reference.name

    async def connect(self) -> None:
        """Choose the endpoint without asking for anything; for what only writes. Raises ConnectionFailed where nobody answers."""
        last: SkepError = SkepError(f"no endpoints for {self._reference.domain}")
        for endpoint in self._endpoints:
            try:
                await self._greet(endpoint)
            except ConnectionFailed as error:
                last = error
                continue
            self._endpoint = endpoint
            return
        raise last

    async def login(self) -> None:
        """Does the registry itself let these credentials in? Raises RegistryError (UNAUTHORIZED), ConnectionFailed where nobody answers."""
        last: SkepError = SkepError(f"no endpoints for {self._reference.domain}")
        for endpoint in self._endpoints:
            if endpoint.mirror:
                continue
            try:
                await self._greet(endpoint)
                async with self._request(endpoint, "/v2/") as answer:
                    if answer.status == 401:
                        raise RegistryError(
                            f'Get "{endpoint.base}/v2/": unauthorized: incorrect username or password', code="UNAUTHORIZED", status=401
                        )
                return
            except ConnectionFailed as error:
                last = error
        raise last

    @asynccontextmanager
    async def send(
        self, method: str, path: str | URL, body: Body = None, headers: Mapping[str, str] | None = None, *, expected: Collection[int]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """To the endpoint chosen: an answer with one of these statuses, or RegistryError. `body` may be asked for more than once."""
        assert self._endpoint is not None
        async with self._request(self._endpoint, path, headers, method=method, body=body) as answer:
            if answer.status not in expected:
                await self._refuse(answer)
            yield answer

    async def manifest(self, target: str) -> Manifest:
        """By tag or digest. The first endpoint that has it also serves the blobs.

        Raises RegistryError with the registry's reason, ConnectionFailed where nobody answers.
        """
        last: SkepError = SkepError(f"no endpoints for {self._reference.domain}")
        for endpoint in [self._endpoint] if self._endpoint else self._endpoints:
            try:
                if endpoint is not self._endpoint:
                    await self._greet(endpoint)
                found = await self._manifest(endpoint, target)
            except ConnectionFailed as error:
                last = error
                continue
            except SkepError as error:
                if not endpoint.mirror:
                    raise
                last = error
                continue
            self._endpoint = endpoint
            return found
        raise last

    def give_up_mirror(self) -> bool:
        """After a failure: was it a mirror's? Then it is not asked again, and the caller may start over."""
        failed, self._endpoint = self._endpoint, None
        if failed is None or not failed.mirror:
            return False
        self._endpoints.remove(failed)
        return True

    async def _greet(self, endpoint: Endpoint) -> None:
        """`GET /v2/` without credentials: is a registry there, and what does it ask for?"""
        async with self._request(endpoint, "/v2/") as answer:
            if answer.status == 401:
                await self._authorize(endpoint, answer)
            elif answer.status >= 400 and answer.status != 404:
                await self._refuse(answer)

    async def _manifest(self, endpoint: Endpoint, target: str) -> Manifest:
        path = f"/v2/{self._reference.path}/manifests/{target}"
        async with self._request(endpoint, path, {"Accept": ", ".join(ACCEPTED)}) as answer:
            if answer.status != 200:
                await self._refuse(answer)
            raw = await _body(answer, MAX_MANIFEST)
            found = decode(raw, answer.headers.get("Content-Type", ""))
            stated = answer.headers.get("Docker-Content-Digest", "")
        if target.startswith("sha256:") and found.digest != target:
            raise SkepError(f"manifest verification failed for digest {target}")
        if stated.startswith("sha256:") and stated != found.digest:
            raise SkepError(f"manifest verification failed for digest {stated}")
        return found

    async def read(self, blob: Descriptor, limit: int) -> bytes:
        """A small blob whole, checked."""
        if blob.size > limit:
            raise SkepError(f"{blob.digest} has {blob.size} bytes, more than the {limit} allowed")
        data = b"".join([chunk async for chunk in self.blob(blob)])
        if digest_of(data) != blob.digest:
            raise SkepError(f"filesystem layer verification failed for digest {blob.digest}")
        return data

    async def blob(self, blob: Descriptor, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The blob's bytes from `offset` to its `size`; a broken connection is taken up where it broke. The caller checks the digest."""
        endpoint = self._endpoint or self._endpoints[-1]
        path = f"/v2/{self._reference.path}/blobs/{blob.digest}"
        for attempt in range(ATTEMPTS):
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            try:
                async with self._request(endpoint, path, headers) as answer:
                    if answer.status not in (200, 206):
                        await self._refuse(answer)
                    skip = offset if answer.status == 200 else 0
                    if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                        raise SkepError(f"{endpoint.base} answered another range of {blob.digest} than was asked for")
                    async for chunk in answer.content.iter_chunked(CHUNK):
                        if skip:
                            skip, chunk = max(0, skip - len(chunk)), chunk[skip:]
                        if offset + len(chunk) > blob.size:
                            raise SkepError(f"{blob.digest} is longer than the {blob.size} bytes its manifest states")
                        offset += len(chunk)
                        if chunk:
                            yield chunk
                if offset == blob.size:
                    return
                raise aiohttp.ClientPayloadError(f"unexpected EOF after {offset} of {blob.size} bytes")
            except _BROKEN as error:
                if attempt == ATTEMPTS - 1:
                    raise ConnectionFailed(describe(error, URL(endpoint.base + path))) from None
                await self._clock.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])

    @asynccontextmanager
    async def _request(
        self, endpoint: Endpoint, path: str | URL, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: Body = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer, whatever its status; tried again on 429 and 5xx, and once with a new token on 401."""
        renewed = False
        attempt = 0
        while True:
            answer = await self._follow(endpoint, path, headers or {}, method, body)
            try:
                if answer.status == 401 and path != "/v2/" and not renewed:
                    renewed = True
                    await self._authorize(endpoint, answer)
                elif (answer.status == 429 or answer.status >= 500) and attempt < ATTEMPTS - 1:
                    await self._clock.sleep(_pause(answer, attempt))
                    attempt += 1
                else:
                    yield answer
                    return
            finally:
                answer.close()

    async def _follow(
        self, endpoint: Endpoint, path: str | URL, headers: Mapping[str, str], method: str, body: Body
    ) -> aiohttp.ClientResponse:
        """One request with its redirects. TLS is never given up on the way, and no other host is told who we are."""
        own = _url(endpoint.base, Invalid).origin()
        first = url = path if isinstance(path, URL) else URL(endpoint.base + path)
        if own.scheme == "https" and first.scheme != "https":
            raise SkepError(f"{own.host} sends us to {first.scheme}://{first.host}, which is not over TLS")
        for _ in range(REDIRECTS + 1):
            sent = dict(headers)
            if url.origin() == own and (value := self._authorization.get(endpoint.base)):
                sent["Authorization"] = value
            answer = await self._ask(method, url, sent, endpoint, body() if callable(body) else body)
            location = answer.headers.get("Location", "")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            if method not in ("GET", "HEAD") and answer.status not in (307, 308):
                return answer
            answer.close()
            url = url.join(_url(location))
            if url.scheme not in ("http", "https") or (first.scheme == "https" and url.scheme != "https"):
                raise SkepError(f"{first.host} redirects to {url.scheme}://{url.host}, which is not over TLS")
        raise SkepError(f'{method.capitalize()} "{first}": stopped after {REDIRECTS} redirects')

    async def _ask(
        self, method: str, url: URL, headers: Mapping[str, str], endpoint: Endpoint, body: bytes | AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        try:
            return await self._session.request(
                method, url, headers=headers, data=body, allow_redirects=False, proxy=proxy_for(url), ssl=_tls(endpoint.verify)
            )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ConnectionFailed(describe(error, url, method.capitalize())) from None

    async def _authorize(self, endpoint: Endpoint, answer: aiohttp.ClientResponse) -> None:
        """Find what to put in the Authorization header of this endpoint from now on. Where somebody else asks, to whom we were sent, we are
        nobody: what holds the registry's blobs has no say in who gets its password."""
        elsewhere = answer.url.origin() != _url(endpoint.base).origin()
        if elsewhere and endpoint.base in self._authorization:
            await self._refuse(answer)
        credentials = Credentials() if endpoint.mirror or elsewhere else self._credentials
        offered = challenges(answer.headers.getall("WWW-Authenticate", []))
        bearer = next((c for c in offered if c.scheme == "bearer"), None)
        if credentials.registry_token and bearer:
            self._authorization[endpoint.base] = f"Bearer {credentials.registry_token}"
        elif bearer:
            self._authorization[endpoint.base] = f"Bearer {await self._token(endpoint, bearer, credentials)}"
        elif any(c.scheme == "basic" for c in offered):
            if not credentials.username:
                raise RegistryError(f'Get "{answer.url}": no basic auth credentials', code="UNAUTHORIZED", status=401)
            self._authorization[endpoint.base] = credentials.basic
        else:
            await self._refuse(answer)

    async def _token(self, endpoint: Endpoint, challenge: Challenge, credentials: Credentials) -> str:
        """The token protocol: https://distribution.github.io/distribution/spec/auth/token/ and /oauth/."""
        realm = _url(challenge.parameters.get("realm", ""))
        if realm.scheme not in ("http", "https") or (realm.scheme == "http" and not endpoint.plain):
            raise SkepError(f"{endpoint.base} names a token server that is not reached over TLS: {realm}")
        asked = {"service": challenge.parameters.get("service", "")}
        if self._actions:
            asked["scope"] = f"repository:{self._reference.path}:{self._actions}"
        try:
            if credentials.identity_token:
                form = {**asked, "grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": AGENT}
                request = self._session.post(realm, data=form, allow_redirects=False, proxy=proxy_for(realm), ssl=_tls(endpoint.verify))
            else:
                headers = {"Authorization": credentials.basic} if credentials.username else {}
                url = realm.update_query({key: value for key, value in asked.items() if value})
                request = self._session.get(url, headers=headers, allow_redirects=False, proxy=proxy_for(realm), ssl=_tls(endpoint.verify))
            async with request as answer:
                if answer.status == 401:
                    raise RegistryError(
                        f'Get "{endpoint.base}/v2/": unauthorized: incorrect username or password', code="UNAUTHORIZED", status=401
                    )
                if answer.status != 200:
                    await self._refuse(answer)
                found = msgspec.json.decode(await _body(answer, MAX_ANSWER), type=_Token)
        except msgspec.MsgspecError:
            raise SkepError(f"{realm.host} answered with something that is no token") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ConnectionFailed(describe(error, realm)) from None
        token = found.token or found.access_token
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise SkepError(f"{realm.host} answered without a token")
        return token

    async def _refuse(self, answer: aiohttp.ClientResponse) -> NoReturn:
        """Raise what a failing answer says, as Docker's client words it: `code in words: message`."""
        for challenge in challenges(answer.headers.getall("WWW-Authenticate", [])):
            if challenge.parameters.get("error") == "insufficient_scope":
                raise RegistryError("denied: requested access to the resource is denied", code="DENIED", status=answer.status)
        raw = await _body(answer, MAX_ANSWER)
        try:
            items = [item for item in msgspec.json.decode(raw, type=_Errors).errors if item.code]
        except msgspec.MsgspecError:
            items = []
        if items:
            first = items[0]
            words = first.code.replace("_", " ").lower()
            raise RegistryError(f"{words}: {_line(first.message) or words}", code=first.code, status=answer.status)
        named = {401: ("UNAUTHORIZED", "unauthorized: authentication required"), 403: ("DENIED", "denied: access forbidden")}
        if answer.status in named:
            code, text = named[answer.status]
            raise RegistryError(text, code=code, status=answer.status)
        raise RegistryError(f"received unexpected HTTP status: {answer.status} {answer.reason or ''}".rstrip(), status=answer.status)


async def _body(answer: aiohttp.ClientResponse, limit: int) -> bytes:
    """At most `limit` bytes, or SkepError."""
    parts, size = [], 0
    try:
        async for chunk in answer.content.iter_chunked(CHUNK):
            size += len(chunk)
            if size > limit:
                raise SkepError(f"{answer.url.host} answered with more than {limit} bytes")
            parts.append(chunk)
    except _BROKEN as error:
        raise ConnectionFailed(describe(error, answer.url)) from None
    return b"".join(parts)


def _line(text: str) -> str:
    """A registry's message as one bounded line."""
    return " ".join(text.split())[:500]


def _pause(answer: aiohttp.ClientResponse, attempt: int) -> int:
    after = answer.headers.get("Retry-After", "")
    return min(int(after) if after.isascii() and after.isdigit() else 0, 5) * SECOND or PAUSES[min(attempt, len(PAUSES) - 1)]


_contexts: dict[bool, ssl.SSLContext] = {}


def _url(text: str, refusal: type[SkepError] = SkepError) -> URL:
    """Names that people give, and what registries say, need not be addresses: a port may be 70000."""
    try:
        return URL(text)
    except ValueError as error:
        raise refusal(f'"{text}" is no address: {error}') from None


def _tls(verify: bool) -> Any:
    """Loading the system's roots takes 20 ms: once per process."""
    if verify not in _contexts:
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        _contexts[verify] = context
    return _contexts[verify]
