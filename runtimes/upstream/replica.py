"""One server among an upstream's replicas: its connections, its load, whether it is to be asked, and what its failures
mean."""

import asyncio
import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import httpx
import msgspec

from enginehouse.config.schema import Upstream, seconds
from enginehouse.runtimes.errors import (
    RETRY_SECONDS,
    Busy,
    RefusedElsewhere,
    TimedOut,
    Unavailable,
    UpstreamFailed,
    quoting,
)
from enginehouse.runtimes.upstream.answer import Broken, ErrorFields, quoted

LINE_BYTES = 1 << 20  # of a stream, at most
BODY_BYTES = 8 << 20  # of a body that is no stream
ERROR_BYTES = 64 << 10
AHEAD = 64  # lines that are read before anyone takes them
LEAST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds without requests after a failure; doubled with each
MOST_FAILURES = 3  # in a row, after which it is not asked for a while; one that cannot be reached is so at once
LONGEST_RETRY = 3600  # seconds that an upstream may send clients away for
Item = bytes | Exception | None  # of a stream: a line's data, what went wrong, the end


class ErrorReply(msgspec.Struct):
    error: ErrorFields | str | None = None
    message: str | None = None  # at the top, of older servers
    detail: Any = None  # FastAPI's


class Replica:
    def __init__(self, url: str, config: Upstream, key: str | None) -> None:
        self.url = url.rstrip("/")
        self.load = 0  # requests under way
        self.turn = 0  # when a conversation began there last; the higher, the later
        self.failure = ""  # why it is not asked, or was not when it was last tried
        self._failures = 0  # in a row
        self._failed = 0.0  # when last
        self._unreachable = False
        self._until = 0.0  # when it may be tried again
        self._config, self._key = config, key
        self._pumps: dict[asyncio.Task[None], asyncio.Queue[Item]] = {}
        connect = seconds(config.connect_timeout)
        # Neither proxies nor ~/.netrc of whoever started the server; authorities as OpenSSL finds them: SSL_CERT_FILE.
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity", **({"authorization": f"Bearer {key}"} if key else {})},
            verify=ssl.create_default_context() if url.startswith("https") else False,
            trust_env=False,
            timeout=httpx.Timeout(None, connect=connect),
            limits=httpx.Limits(max_connections=config.connections, max_keepalive_connections=config.connections),
        )

    @property
    def resting(self) -> bool:
        """It failed so often that it is left alone."""
        return self._unreachable or self._failures >= MOST_FAILURES

    def usable(self, now: float) -> bool:
        """Whether it may be asked: of one that rests, when that is over, by one request at a time until it answers."""
        return not self.resting or (now >= self._until and not self.load)

    def waits(self, now: float) -> float:
        """Seconds until it may be asked again."""
        return max(0.0, self._until - now)

    def note_answer(self) -> None:
        self.failure, self._failures, self._unreachable = "", 0, False

    def note_reached(self) -> None:
        """It is there; whether it can answer, a request will show."""
        if self._unreachable:
            self.note_answer()

    def note_failure(self, error: Exception, began: float = math.inf) -> None:
        """`began`: when it was asked. What fails together is one failure: behind an address there may be several
        servers, of which one died with all that it had."""
        self.failure, self._unreachable = str(error), isinstance(error, Unreachable)
        if began < self._failed:
            return
        self._failures, self._failed = self._failures + 1, asyncio.get_running_loop().time()
        pause = LEAST_PAUSE * 2 ** min(max(self._failures - MOST_FAILURES, 0), 10)
        self._until = asyncio.get_running_loop().time() + min(LONGEST_PAUSE, pause)

    async def stream(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[bytes, None]:
        """The data of each event of an answer, without the one that says it is over. A task of its own reads it, so
        that leaving it awaits nothing: the connection is closed behind whoever leaves."""
        came: asyncio.Queue[Item] = asyncio.Queue(AHEAD)
        pump = asyncio.create_task(self._pump(path, body, headers, came))
        self._pumps[pump] = came
        pump.add_done_callback(lambda done: self._pumps.pop(done, None))
        try:
            while (item := await came.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            pump.cancel()

    async def ask(self, method: str, path: str, body: bytes | None, patience: float | None) -> bytes:
        """A whole answer."""
        return await self._translated(self._whole(method, path, body), patience)

    def interrupt(self, error: Exception) -> None:
        """Ends every stream with it."""
        for pump, came in list(self._pumps.items()):
            pump.cancel()
            while not came.empty():
                came.get_nowait()
            came.put_nowait(error)

    async def end(self) -> None:
        pumps = list(self._pumps)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await self._client.aclose()

    async def _pump(self, path: str, body: bytes, headers: Mapping[str, str], came: asyncio.Queue[Item]) -> None:
        try:
            await self._translated(self._read(path, body, headers, came), None)
            await came.put(None)
        except Exception as error:  # whatever it is, the request's own task is to raise it
            await came.put(error)

    async def _read(self, path: str, body: bytes, headers: Mapping[str, str], came: asyncio.Queue[Item]) -> bytes:
        now = asyncio.get_running_loop().time
        first, between = seconds(self._config.first_token_timeout), seconds(self._config.token_timeout)
        headers = {"content-type": "application/json", "accept": "text/event-stream", **headers}
        begun = False
        try:
            async with asyncio.timeout(first) as limit:
                async with self._client.stream("POST", self.url + path, content=body, headers=headers) as response:
                    await self._check(response, "text/event-stream")
                    async for data in events(response.aiter_raw()):
                        if data == b"[DONE]":
                            return b""
                        begun = True
                        limit.reschedule(None)  # who takes it may be slow
                        await came.put(data)
                        limit.reschedule(None if between is None else now() + between)
        except TimeoutError:
            config = self._config
            what = (
                f"nothing more within {config.token_timeout}"
                if begun
                else f"no answer within {config.first_token_timeout}"
            )
            raise TimedOut(f"the upstream said {what}", "upstream_timeout") from None
        return b""

    async def _whole(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"content-type": "application/json"} if body is not None else {}
        async with self._client.stream(method, self.url + path, content=body, headers=headers) as response:
            await self._check(response, "application/json")
            read = await limited(response, BODY_BYTES)
            if read is None:
                raise Broken(f"the upstream's answer has more than {BODY_BYTES >> 20} MiB")
            return read

    async def _translated(self, work: Any, patience: float | None) -> bytes:
        """What comes of it, or what httpx says as one of our own errors. No address is in them: clients read them."""
        try:
            async with asyncio.timeout(patience):
                result: bytes = await work
                return result
        except TimeoutError:
            raise TimedOut(f"the upstream said nothing within {patience:g} s", "upstream_timeout") from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE" in str(error).upper() or "SSL" in str(error):
                raise UpstreamFailed(
                    f"the upstream's certificate or TLS is not right: {quoted(str(error), None)}"
                ) from None
            raise unreachable() from None
        except httpx.PoolTimeout:
            raise Busy("every connection to the upstream is taken", "upstream_busy", RETRY_SECONDS) from None
        except httpx.TransportError as error:
            raise Broken(
                f"the connection to the upstream broke: {quoted(str(error), None) or type(error).__name__}"
            ) from None
        except httpx.InvalidURL:
            raise Broken("the upstream's address is none") from None

    async def _check(self, response: httpx.Response, kind: str) -> None:
        """Raises what a response says that is no answer."""
        if response.status_code != 200:
            raise self._error_of(response, await limited(response, ERROR_BYTES) or b"")
        sent = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sent != kind:
            raise Broken(
                f"the upstream answered with '{quoted(sent, self._key) or 'no content-type'}' and not with {kind}"
            )
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise Broken(f"the upstream's answer is in '{quoted(encoding, self._key)}', which was not asked for")

    def _error_of(self, response: httpx.Response, body: bytes) -> Exception:
        status, after = response.status_code, retry_after(response.headers.get("retry-after"))
        fields = fields_of(body)
        if status in (401, 403):  # what it says may have the key in it
            what = "does not take its key" if self._key else "wants a key"
            return UpstreamFailed(f"the upstream {what} ({status}); the operator sets it in 'upstream.api_key_env'")
        return quoting(error_of(status, after, fields), quoted(fields.message, self._key))


def error_of(status: int, after: int | None, fields: ErrorFields) -> Exception:
    match status:
        case 404 | 405:
            return UpstreamFailed(f"the upstream has no such model or route ({status})")
        case 408 | 504:
            return TimedOut(f"the upstream was not finished in time ({status})", "upstream_timeout")
        case 429:
            return Busy("the upstream is busy (429)", "upstream_busy", after or RETRY_SECONDS)
        case 503:
            return Unavailable("the upstream cannot serve now (503)", "upstream_unavailable", after)
        case 400 | 413 | 415 | 422:
            code = str(fields.code) if fields.code not in (None, status) else None
            return RefusedElsewhere(f"the upstream refuses the request ({status})", fields.param, code)
    return UpstreamFailed(f"the upstream answered with status {status}")


class Unreachable(Unavailable):
    """Nothing listens there, or no network leads there."""


def unreachable() -> Unreachable:
    return Unreachable("the upstream cannot be reached", "upstream_unavailable", RETRY_SECONDS)


def retry_after(header: str | None) -> int | None:
    """Seconds; a date, or what is none of both, is left out."""
    return (
        min(int(header), LONGEST_RETRY)
        if header and header.isascii() and header.isdigit() and len(header) < 10
        else None
    )


def fields_of(body: bytes) -> ErrorFields:
    try:
        reply = msgspec.json.decode(body, type=ErrorReply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorFields()
    if isinstance(reply.error, ErrorFields):
        return reply.error
    detail = reply.detail if isinstance(reply.detail, str) else ""
    return ErrorFields(reply.error or reply.message or detail)


async def limited(response: httpx.Response, most: int) -> bytes | None:
    """The body; None where it is longer."""
    read = bytearray()
    async for piece in response.aiter_raw():
        read += piece
        if len(read) > most:
            return None
    return bytes(read)


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event: one line, in every server of this API. Comments and other fields are left
    out."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        *lines, rest = held.split(b"\n")
        held = rest
        if len(held) > LINE_BYTES:
            raise Broken(f"the upstream's stream has a line of more than {LINE_BYTES >> 20} MiB")
        for line in lines:
            if line.startswith(b"data:") and (data := bytes(line[5:]).strip()):
                yield data
    if held.startswith(b"data:") and (data := bytes(held[5:]).strip()):
        yield data
