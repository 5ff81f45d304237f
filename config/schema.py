"""Every key of the config file, with its default. A default appears here and nowhere else."""

import re
from typing import Annotated, Any, Literal

import msgspec

LARGEST_PORT = 65535
DEFAULT_CONTEXT = 8192  # tokens, of a model that does not say what it was made for
DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h)$")
SECONDS = {"s": 1, "m": 60, "h": 3600}

Duration = Annotated[str, msgspec.Meta(pattern=r"^(\d+(\.\d+)?[smh]|forever)$")]
Size = Annotated[str, msgspec.Meta(pattern=r"^(\d+(\.\d+)?(%|MiB|GiB))$")]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Key = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]+$")]  # what a header can carry: any other would never match
HttpUrl = Annotated[str, msgspec.Meta(pattern=r"^https?://[^/?#\s@]+(/[^?#\s]*)?$")]  # no key in it: it is shown
Origin = Annotated[str, msgspec.Meta(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^*/?#\s]+)$")]  # as browsers write it


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key with a name of its own, and what may be done with it. None: as much as there is."""

    key: Key
    priority: Literal["interactive", "batch"] = "interactive"  # of what comes with it, unless a request says otherwise
    models: tuple[str, ...] = ()  # names or aliases that it may ask for; none = all
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None  # of prompts and answers together
    concurrent: Positive | None = None  # requests under way


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_PORT)] = 8080
    api_keys: tuple[Key, ...] = ()  # empty = open to everyone who can connect
    batch_keys: tuple[Key, ...] = ()  # further keys: what comes with them is batch unless it says otherwise
    keys: dict[str, ApiKey] = {}  # further keys, by a name for them, with limits
    admin_keys: tuple[Key, ...] = ()  # of operators: they may also load and unload models, and delete what was built
    allow_open: bool = False  # without keys, listen on more than loopback all the same
    max_queue: Positive = 256  # waiting requests per model; beyond it 429
    load_timeout: Duration = "10m"  # a plain request waits so long for its model, then gets 503; a stream waits on
    request_timeout: Duration = "forever"  # a request that is not finished by then ends with 504, or an error event
    drop_attribution: bool = True  # lines at the head of a prompt by which clients are billed reach no model
    cors_origins: tuple[Origin, ...] = ()  # of pages that browsers let read the answers; "*": any
    ollama: bool = False  # listen on port 11434 too, where programs look for Ollama
    drain_timeout: Duration = "8s"  # after SIGTERM, in which answers may come to their end; Docker kills after 10 s
    otlp_traces_endpoint: HttpUrl | None = None  # where OpenTelemetry's traces go: http://127.0.0.1:4318/v1/traces
    log_format: Literal["text", "json"] = "text"  # a line for each record, with the id of its request
    log_prompts: bool = False  # what is asked is in the log too, and what unexpected errors say
    send_timeout: Duration = "60s"  # a connection whose client takes nothing of an answer for so long is ended

    def __post_init__(self) -> None:
        named = [("api_keys", key) for key in self.api_keys] + [("batch_keys", key) for key in self.batch_keys]
        named += [(f"keys.{name}", one.key) for name, one in self.keys.items()]
        named += [("admin_keys", key) for key in self.admin_keys]
        places: dict[str, str] = {}
        for place, key in named:
            if places.setdefault(key, place) != place:
                raise ValueError(f"a key is in {places[key]} and in {place}; leave it in one of them")

    @property
    def all_keys(self) -> tuple[ApiKey, ...]:
        """Of those who are not operators; none = open."""
        batch = (ApiKey(key, "batch") for key in self.batch_keys)
        return (*map(ApiKey, self.api_keys), *batch, *self.keys.values())


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Servers of OpenAI's API that serve a model: replicas of one another. See docs/upstreams.md."""

    base_urls: Annotated[tuple[HttpUrl, ...], msgspec.Meta(min_length=1, max_length=64)]  # as OpenAI's clients take it
    model: Annotated[str, msgspec.Meta(min_length=1)]  # its name there
    api_key_env: str | None = None  # the environment variable that holds their key
    answers_as: str | None = None  # what they call it in answers, where that is not `model`
    features: tuple[str, ...] | None = None  # what they honour; unset = as /v1/models tells what they are
    parser: str | None = None  # takes thoughts and calls out of their text: a name of runtimes/tool_calls/parsers
    connections: Positive = 64  # to each of them
    connect_timeout: Duration = "5s"
    first_token_timeout: Duration = "5m"  # from the request to the first token
    token_timeout: Duration = "1m"  # between two


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Annotated[str, msgspec.Meta(min_length=1)] | None = None  # hub id | folder | .gguf file | builtin:NAME
    revision: str | None = None  # of a hub id: branch, tag or commit
    runtime: str = "auto"  # or the name of a file in runtimes/engines/, or upstream
    adapter: str | None = None  # folder with a LoRA adapter as PEFT writes it, or a hub id; merged into the source
    precision: str = "auto"  # auto | int4 | int8 | 16bit | bf16 | f16 | f32, or a toolchain's own name (Q4_K_M)
    context: Positive | None = None  # tokens a request may use; unset = the model's own, as far as memory allows
    slots: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8  # sequences decoded together
    keep_alive: Duration = "10m"  # an idle model is unloaded after it
    aliases: tuple[str, ...] = ()  # further names it answers to
    preload: bool = False  # loaded when the server starts, which is ready once it has answered
    options: dict[str, dict[str, Any]] = {}  # by runtime, passed to its loader
    upstream: Upstream | None = None  # servers elsewhere that serve it: alone with `runtime: upstream`, or as overflow
    # When a request goes there and not to an engine here: when these fail, or also while they are loaded, or also when
    # all slots are taken.
    overflow: Literal["never", "failing", "loading", "busy"] = "never"
    local_only: bool = False  # nothing that is asked of it leaves this machine, whatever else is said

    @property
    def origin(self) -> str:
        """Where it comes from, for people."""
        return self.source or f"upstream:{self.upstream.model if self.upstream else ''}"

    def __post_init__(self) -> None:
        if self.runtime == "upstream":
            if not self.upstream:
                raise ValueError("'runtime: upstream' needs 'upstream: {base_urls: [...], model: NAME}'")
            if self.source is not None:
                raise ValueError("'source' is loaded here and 'runtime: upstream' loads nothing; leave one of them out")
            if self.overflow != "never":
                raise ValueError("'overflow' is of a model that runs here; 'runtime: upstream' runs none")
            if self.local_only:
                raise ValueError("'local_only' forbids 'runtime: upstream'; leave one of them out")
        elif self.source is None:
            raise ValueError("object missing required field `source`")
        elif self.overflow != "never" and not self.upstream:
            raise ValueError("'overflow' needs 'upstream: {base_urls: [...], model: NAME}'")
        elif self.upstream and self.overflow == "never" and not self.local_only:
            raise ValueError("'upstream' is never asked: set 'overflow', or 'runtime: upstream' without a 'source'")

    def differs(self, other: "Model") -> bool:
        """Whether another engine is to be loaded, and not only called otherwise or kept longer."""
        same = {key: getattr(self, key) for key in ("keep_alive", "aliases", "preload")}
        return msgspec.structs.replace(other, **same) != self


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    objective: Literal["balanced", "latency", "throughput", "memory"] = "balanced"  # see docs/engines.md
    measure: Literal["idle", "on-demand", "off"] = (
        "idle"  # untried candidates: when no request comes; by `bench`; never
    )
    strict: bool = False  # a request that the chosen engine cannot honour goes to no other one


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bar of the quality gate; see `Quality` in optimize/artifact.py. Argued in DECISIONS.md."""

    divergence: Annotated[float, msgspec.Meta(gt=0)]  # at most
    agreement: Annotated[float, msgspec.Meta(ge=0, le=1)]  # at least
    perplexity: Annotated[float, msgspec.Meta(gt=0)]  # at most
    accuracy: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.95  # at least; where the model has an eval.jsonl
    divergence_99: Annotated[float, msgspec.Meta(gt=0)] | None = None  # at most, at 99 places of 100; see `worst`

    @property
    def worst(self) -> float:
        """What the divergence may be at 99 places of 100: for errors that are rare and grave."""
        return self.divergence_99 or 10 * self.divergence


class Optimize(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    first_load: Literal["serve-now", "wait"] = "serve-now"  # answer from the quickest artifact while a better is built
    quality: Literal["warn", "enforce"] = "warn"  # a pinned precision below the bar is served with a warning, or not
    int4: Limits = Limits(0.10, 0.93, 1.10)  # below 8 bits
    int8: Limits = Limits(0.02, 0.98, 1.02)
    bf16: Limits = Limits(0.005, 0.99, 1.01)  # 16 and 32 bits

    def limits(self, bits: int) -> Limits:
        return self.int4 if bits < 8 else self.int8 if bits < 16 else self.bf16


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: Server = Server()
    routing: Routing = Routing()
    optimize: Optimize = Optimize()
    kv_disk: Size = "10GiB"  # of cache_dir, for prompts that were read; 0GiB: they are forgotten with their worker
    batch_disk: Size = "10GiB"  # of cache_dir, for files of /v1/files: uploaded ones and what batches write
    memory_budget: Size = "80%"  # for loaded models: of the memory there is, or in MiB or GiB
    cache_dir: str = "~/.cache/enginehouse"
    models: dict[str, Model] = {}


def seconds(duration: str) -> float | None:
    """Seconds of a duration as the schema admits it, None for "forever"."""
    match = DURATION.match(duration)
    return float(match[1]) * SECONDS[match[2]] if match else None


def bytes_of(size: str, whole: int) -> int:
    """Bytes of a size as the schema admits it; `whole` is what a percentage is of."""
    number, unit = re.fullmatch(r"([\d.]+)(%|MiB|GiB)", size).groups()  # type: ignore[union-attr]
    return int(float(number) * {"%": whole / 100, "MiB": 1 << 20, "GiB": 1 << 30}[unit])
