"""What a key may use up: requests and tokens in a minute, and requests at a time. Told in OpenAI's headers."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from enginehouse.config.schema import ApiKey
from enginehouse.runtimes.errors import UnknownModel
from enginehouse.runtimes.metrics import RATE_LIMITED
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server.auth import Caller, internal_of
from enginehouse.server.errors import Forbidden, RateLimited

Connection = ASGIConnection[Any, Any, Any, Any]
LATEST = ":latest"
SCOPE = "enginehouse.use"  # of a request: what it uses up
MINUTE = 60.0


class Bucket:
    """A minute's worth, that fills again all the time. By the monotonic clock, whatever is done to the other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._level, self._at = float(size), time.monotonic()

    def level(self) -> float:
        now = time.monotonic()
        self._level = min(self.size, self._level + (now - self._at) * self.size / MINUTE)
        self._at = now
        return self._level

    def take(self, amount: int) -> None:
        """It may go below nothing: an answer's tokens are known when they are there."""
        self._level = self.level() - amount

    def seconds_until(self, level: float) -> float:
        return max(0.0, (level - self.level()) * MINUTE / self.size)


class Use:
    """Of one key, by all its requests."""

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self.requests = Bucket(key.requests_per_minute) if key.requests_per_minute else None
        self.tokens = Bucket(key.tokens_per_minute) if key.tokens_per_minute else None
        self.under_way = 0

    def begin(self) -> None:
        """Counts a request, or raises RateLimited."""
        if self.requests and self.requests.level() < 1:
            limit = f"{self.requests.size} requests in a minute"
            raise too_many("requests", limit, self.requests.seconds_until(1))
        if self.tokens and self.tokens.level() <= 0:
            raise too_many("tokens", f"{self.tokens.size} tokens in a minute", self.tokens.seconds_until(1))
        if self.key.concurrent and self.under_way >= self.key.concurrent:
            raise too_many("concurrent", f"{self.key.concurrent} requests at a time", 1)
        if self.requests:
            self.requests.take(1)
        self.under_way += 1

    def end(self) -> None:
        self.under_way -= 1

    def begin_batched(self) -> None:
        """Counts one that a batch asks; it holds up nobody, so that it is not one of those at a time."""
        if self.requests:
            self.requests.take(1)

    def seconds_until_half(self) -> float:
        """Until half of a minute's worth is there: a batch leaves the other half to whoever else has the key."""
        buckets = [bucket for bucket in (self.requests, self.tokens) if bucket]
        return max([bucket.seconds_until(max(1, bucket.size / 2)) for bucket in buckets], default=0.0)

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = []
        for what, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket:
                left, full = max(0, math.floor(bucket.level())), bucket.seconds_until(bucket.size)
                for name, value in (("limit", bucket.size), ("remaining", left), ("reset", f"{full:.3f}s")):
                    found.append((f"x-ratelimit-{name}-{what}".encode(), str(value).encode()))
        return found


def too_many(what: str, limit: str, retry_after: float) -> RateLimited:
    RATE_LIMITED.labels(what).inc()
    message = f"Rate limit reached for this API key: {limit}. Please try again in {retry_after:.3f}s."
    return RateLimited(message, retry_after)


class Uses:
    """Of all keys. One whose limits stay the same goes on from where it was when the config changes."""

    def __init__(self) -> None:
        self._by_owner: dict[str, Use] = {}

    def of(self, caller: Caller) -> Use:
        use = self._by_owner.get(caller.owner)
        if use is None or use.key != caller.key:
            use = self._by_owner[caller.owner] = Use(caller.key)
        return use


async def rate_guard(connection: Connection, _: BaseRouteHandler) -> None:
    """Counts a POST; after the `key_guard`."""
    caller: Caller | None = getattr(connection.state, "caller", None)
    if caller is None or connection.scope.get("method") != "POST":
        return
    use: Use = connection.app.state.uses.of(caller)
    request = connection.scope[SCOPE]  # type: ignore[literal-required]
    request.use = use
    if internal_of(connection):
        use.begin_batched()
        return
    use.begin()
    request.begun = True


class Metered:
    """What one request uses up."""

    use: Use | None = None
    begun = False


def metered(app: Any) -> Any:
    """The application, telling in headers what is left, and counting a request until its answer is out."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        request = Metered()

        async def send_told(message: Any) -> None:
            if message["type"] == "http.response.start" and request.use:
                message = message | {"headers": [*message.get("headers", ()), *request.use.headers()]}
            await send(message)

        try:
            await app(scope | {SCOPE: request}, receive, send_told)
        finally:
            if request.use and request.begun:
                request.use.end()

    return call


def hold(scope: Mapping[str, Any]) -> Callable[[], None]:
    """The request goes on counting when its answer is out, until that is called."""
    request: Metered | None = scope.get(SCOPE)
    if request is None or request.use is None or not request.begun:
        return lambda: None
    request.begun = False
    return request.use.end


def charge(scope: Mapping[str, Any], tokens: int) -> None:
    """Takes tokens off what the key of a request may use."""
    request: Metered | None = scope.get(SCOPE)
    if request and request.use and request.use.tokens:
        request.use.tokens.take(tokens)


def check_model(connection: Connection, asked: str) -> None:
    """Raises Forbidden where the key may not use that model; Ollama's clients name it with a tag."""
    if not any(may_use(connection, name) for name in (asked, asked.removesuffix(LATEST), asked + LATEST)):
        raise Forbidden(f"this API key may not use the model '{asked}'", "model_not_found")


def may_use(connection: Connection, asked: str) -> bool:
    return is_allowed(connection.app.state.pool, getattr(connection.state, "caller", None), asked)


def is_allowed(pool: Pool, caller: Caller | None, asked: str) -> bool:
    if caller is None or not caller.key.models:
        return True
    with suppress(UnknownModel):
        return pool.resolve(asked) in map(pool.resolve, caller.key.models)
    return False
