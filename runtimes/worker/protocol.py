"""Every message between server and worker, and their framing: four bytes of length, then msgpack."""

import msgspec

from enginehouse.runtimes.contract import Delta, Done, Facts, Load, Pooling, Priority, Prompt, PromptProgress, Sampling


class Submit(msgspec.Struct, tag="submit", frozen=True):
    job: int
    prompt: Prompt
    sampling: Sampling
    generated: list[int] = []  # tokens another engine has answered with already; the answer goes on after them
    echo: bool = False
    priority: Priority = "interactive"
    request_id: str = ""  # as its client knows it


class Embed(msgspec.Struct, tag="embed", frozen=True):
    job: int
    texts: list[str | list[int]]
    pooling: Pooling


class Tokenize(msgspec.Struct, tag="tokenize", frozen=True):
    """Asks for a prompt's tokens, as an answer to it would be counted."""

    job: int
    prompt: Prompt


class Detokenize(msgspec.Struct, tag="detokenize", frozen=True):
    job: int
    ids: list[int]


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    job: int


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Answered at once, whatever the worker is about."""


class Pong(msgspec.Struct, tag="pong", frozen=True):
    turns: int  # messages, steps and pieces so far
    busy: bool  # with one of them


class Start(msgspec.Struct, tag="start", frozen=True):
    load: Load


class Loading(msgspec.Struct, tag="loading", frozen=True):
    fraction: float


class Ready(msgspec.Struct, tag="ready", frozen=True):
    facts: Facts
    seconds: float


class LoadFailed(msgspec.Struct, tag="load_failed", frozen=True):
    message: str
    needed: int = 0  # bytes of memory with which it would not have; 0: it is not for want of them


class Emit(msgspec.Struct, tag="emit", frozen=True, omit_defaults=True):
    """All that one engine step brought, for all jobs; or that a job was admitted."""

    tokens: list[tuple[int, int]]  # job, id: what a job has generated so far, should it have to go on elsewhere
    deltas: list[tuple[int, Delta]]
    dones: list[tuple[int, Done]]
    progress: list[tuple[int, PromptProgress]] = []  # they come before the rest


class Grow(msgspec.Struct, tag="grow", frozen=True):
    """Asks for memory. The engine waits for the answer."""

    ask: int
    bytes: int  # more than it has


class Granted(msgspec.Struct, tag="granted", frozen=True):
    ask: int
    granted: bool


class Embedded(msgspec.Struct, tag="embedded", frozen=True):
    job: int
    vectors: list[list[float]]
    tokens: int  # of all texts


class Tokenized(msgspec.Struct, tag="tokenized", frozen=True):
    job: int
    ids: list[int]


class Detokenized(msgspec.Struct, tag="detokenized", frozen=True):
    job: int
    text: str


class Refusal(msgspec.Struct, tag="refusal", frozen=True):
    job: int
    message: str
    param: str | None
    code: str | None
    context: int = 0  # these three of a prompt that is too long
    tokens: int = 0
    at_least: bool = False


class Failure(msgspec.Struct, tag="failure", frozen=True):
    """One job broke; the engine goes on."""

    job: int
    message: str


ToWorker = Start | Ping | Submit | Embed | Tokenize | Detokenize | Cancel | Granted
ToServer = Loading | Pong | Ready | LoadFailed | Emit | Embedded | Tokenized | Detokenized | Refusal | Failure | Grow

LENGTH_BYTES = 4
_encoder = msgspec.msgpack.Encoder()
decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_to_server = msgspec.msgpack.Decoder(ToServer).decode


def frame(message: ToWorker | ToServer) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body
