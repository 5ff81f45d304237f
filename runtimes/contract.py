"""The types between server, pool, worker and engines. Read this first."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, get_args

import msgspec

from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.structure import Structure

T = TypeVar("T")
FinishReason = str  # "stop" | "length" | "tool_calls"
Pooling = Literal["mean", "last", "cls"]
Priority = Literal["interactive", "batch"]  # whether a person waits for it


class JsonSchema(msgspec.Struct, frozen=True, tag="json_schema"):
    """The answer is one JSON value that validates."""

    schema: str  # as JSON text


class Regex(msgspec.Struct, frozen=True, tag="regex"):
    """The whole answer matches."""

    pattern: str


class Grammar(msgspec.Struct, frozen=True, tag="grammar"):
    """The answer derives from `start` of a grammar in llguidance's dialect of Lark, or `root` of one in llama.cpp's
    GBNF."""

    text: str


class Structured(msgspec.Struct, frozen=True, tag="tools"):
    """The answer has the structure of thoughts and tool calls in the model's own form. Made by the worker."""

    structure: Structure
    asked_by: str = "tools"  # the request's field


Constraint = JsonSchema | Regex | Grammar | Structured
JSON_OBJECT = JsonSchema('{"type": "object"}')


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is chosen. Neutral defaults: plain sampling from the model's own distribution."""

    max_tokens: int | None = None  # None: until the context is full; 0: the prompt is read and nothing said
    min_tokens: int = 0  # no end-of-sequence token before so many tokens
    ignore_eos: bool = False  # an end-of-sequence token does not end the answer
    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = all
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0  # over generated tokens
    presence_penalty: float = 0.0  # over generated tokens
    repetition_penalty: float = 1.0  # over prompt and generated tokens
    logit_bias: dict[int, float] = {}  # token id -> added to its logit
    stop_token_ids: tuple[int, ...] = ()  # end the answer as an end-of-sequence token does
    logprobs: int | None = None  # how many alternatives to report beside the chosen token; None: not even that one
    constraint: Constraint | None = None
    prediction: str = ""  # what the answer may say in large part: it comes sooner then, and is the same


NEUTRAL = Sampling()


def asked_for(sampling: Sampling, echo: bool = False) -> Iterator[tuple[str, str]]:
    """Each feature an engine must have for this, and the field that asks for it."""
    for field in Sampling.__struct_fields__:
        if field not in ("stop", "constraint") and getattr(sampling, field) != getattr(NEUTRAL, field):
            yield field, field
    if sampling.logprobs and sampling.max_tokens != 0:
        yield "top_logprobs", "top_logprobs"
    if echo and sampling.logprobs is not None:
        yield "prompt_logprobs", "echo"
    if isinstance(sampling.constraint, Structured):
        yield "tools", sampling.constraint.asked_by
    elif sampling.constraint:
        yield str(sampling.constraint.__struct_config__.tag), "response_format"


class Chat(msgspec.Struct, frozen=True, tag="chat"):
    """A conversation, to be rendered by the model's own template."""

    messages: list[dict[str, Any]]  # OpenAI's shape, checked by the server
    tools: list[dict[str, Any]] | None = None
    call_required: bool = False  # the answer is at least one tool call
    call_name: str = ""  # and it calls this one
    parallel_calls: bool = True  # several calls in one answer
    template_options: dict[str, Any] = {}  # further variables for the template, e.g. enable_thinking
    effort: str = ""  # of reasoning, in OpenAI's words; "": as the template does of its own accord
    # auto: an answer goes on from the assistant's own last message, else begins anew; new: it always does; none: the
    # prompt ends where its last message does
    ending: Literal["auto", "new", "none"] = "auto"


class Ids(msgspec.Struct, frozen=True, tag="ids"):
    """Token ids, taken as they are."""

    ids: list[int]


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Text, tokenized as the engine does it and otherwise taken as it is."""

    text: str
    special: bool = True  # BOS is put in front if the model wants one


Prompt = Chat | Text | Ids


class Job(msgspec.Struct, frozen=True):
    """One answer to be generated."""

    id: str
    model: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    streamed: bool = True  # the client has seen what was said so far, so that it cannot be said anew
    echo: bool = False  # the answer begins with the prompt's text, and its log-probabilities where they are asked for
    priority: Priority = "interactive"
    request: str = ""  # the id of the first of all jobs of a request
    request_id: str = ""  # the request's, as its client knows it
    trace_headers: dict[str, str] = {}  # W3C's, for a server that is asked for this answer
    owner: str = ""  # who asks; those who wait for a model have their turns one after the other
    counted: bool = False  # each delta says how many tokens there are so far

    @property
    def resumable(self) -> bool:
        """Whether another engine may take it up in the middle: what was said so far decides what comes next, and
        nothing the first engine has counted or drawn is lost with it."""
        s = self.sampling
        repeats = s.temperature == 0 or s.seed is not None
        constrained = s.constraint or (isinstance(self.prompt, Chat) and self.prompt.tools)
        return repeats and not (s.frequency_penalty or s.presence_penalty or constrained)

    def needs(self) -> list[tuple[str, str]]:
        """As `asked_for`; tools make a constraint once the model's form of calls is known."""
        tools = isinstance(self.prompt, Chat) and self.prompt.tools
        return [*asked_for(self.sampling, self.echo), *([("tools", "tools")] if tools else [])]


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # prompt tokens whose prefill was reused
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0  # tokens of the answer that were guessed
    rejected_prediction_tokens: int = 0  # guesses that were wrong


class ToolCall(msgspec.Struct, frozen=True):
    """A piece of one. The first of each call has its name and no arguments, the later ones arguments alone."""

    index: int  # of the call in this answer, from 0
    name: str = ""
    arguments: str = ""  # a piece of JSON text


class Scored(msgspec.Struct, frozen=True, array_like=True):
    """A token and how likely the model held it to be: before temperature, penalties, bias and constraints."""

    id: int
    text: bytes
    logprob: float


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """A token of the answer, or of a prompt that is echoed, and the likeliest at its place."""

    token: Scored
    top: tuple[Scored, ...] = ()
    first: bool = False  # of a prompt: nothing stands before it, so that its log-probability means nothing


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came out for one job since the last one."""

    text: str = ""
    reasoning: str = ""
    tool_call: ToolCall | None = None
    logprobs: list[Logprob] = []  # of the tokens since the last delta that had any
    tokens: int = 0  # of the answer so far; only where they are to be counted


class Done(msgspec.Struct, frozen=True):
    finish_reason: FinishReason
    usage: Usage
    prefill_seconds: float = 0.0  # from admission to the first token
    decode_seconds: float = 0.0
    stop: str = ""  # the stop string that ended it, if one did
    slot_seconds: float = 0.0  # of `prefill_seconds`, those before it had a slot


class PromptProgress(msgspec.Struct, frozen=True, array_like=True):
    """How far a prompt is read. The first one of a job comes when it is admitted: nothing but a crash can follow.
    That all is read says that the answer goes on, though there is nothing to show of it."""

    prompt_tokens: int
    read: int | None = None  # of them, those among them that were in the KV cache; None: not begun, or not to be known
    cached: int = 0
    seconds: float = 0.0  # since it was admitted
    tier: str = ""  # where the cached ones were: "slot", "memory" (another slot, or what was kept), "disk"


class Waits(msgspec.Struct, frozen=True):
    """Seconds before a job was admitted, by what it waited for."""

    turn: float = 0.0
    load: float = 0.0
    admission: float = 0.0  # its prompt was rendered and tokenized, and its constraint made


class Assigned(msgspec.Struct, frozen=True):
    """Who gives the answer: its first event, once it is admitted there, and again if another engine takes it up in the
    middle."""

    runtime: str
    precision: str
    device: str
    reason: str  # for the choice
    fingerprint: str = ""  # changes when the model's bytes, its engine, precision, options or versions do
    again: bool = False  # from the start: what was said so far is void
    prompt_tokens: int = 0
    waits: Waits = Waits()


Event = Assigned | PromptProgress | Delta | Done


class Token(msgspec.Struct, frozen=True):
    """What one step brought for one job."""

    job: int
    id: int  # -1: no token, only the end
    text: bytes  # b"" for a control token, unless it marks calls or thoughts; may end inside a UTF-8 sequence
    finish: FinishReason | None = None  # "stop": the model ended; "length": max_tokens or the context is reached
    cached: int = 0  # on a job's first token: prompt tokens reused from the KV cache
    logprob: float | None = None  # of this token, or of the one that ended the answer, if `logprobs` was asked for
    top: tuple[Scored, ...] = ()  # the likeliest, best first, as many as asked for
    guessed: bool = False  # it was computed in the step of the one before it
    wrong: int = 0  # tokens that were guessed to follow those before it, and did not
    failure: str = ""  # why this job alone could not go on; it has ended, and `finish` says nothing
    tier: str = ""  # where the cached ones were, as in PromptProgress
    waited: float = 0.0  # seconds until it had a slot


class Facts(msgspec.Struct, frozen=True):
    """What a loaded engine says of itself."""

    context_length: int  # tokens of prompt and answer together
    slots: int
    vocabulary: int
    chat_template: str | None
    bos: str  # text of the token, "" if none
    eos: str
    device: str  # "cpu", "gpu", "npu"
    features: tuple[str, ...]  # names of the Sampling fields it honours, of constraints by tag, and of FURTHER
    longest_token: int = 0  # bytes of text that one token stands for, at most; 0: not known
    special_tokens: tuple[str, ...] = ()  # texts that become one token wherever they stand in a prompt
    token_bytes: int = 0  # that the KV cache takes for a token
    kv_bytes: int = 0  # that it may come to take beyond what it has when it is loaded, without asking
    kv_tokens: int = 0  # that it holds of all sequences together; 0: not known


# What an engine may honour beyond the fields of Sampling: alternatives beside the chosen token's logprob; embed();
# score().
FURTHER = ("top_logprobs", "embeddings", "prompt_logprobs")
EVERYTHING = (*Sampling.__struct_fields__, *(kind.__struct_config__.tag for kind in get_args(Constraint)), *FURTHER)


class Load(msgspec.Struct, frozen=True):
    """What a worker is told to load."""

    runtime: str
    path: str
    context: int  # tokens of prompt and answer together, at most; Facts says what became of it
    slots: int
    threads: int
    free_bytes: int  # memory that may be taken, 0 where the host does not say
    options: dict[str, Any] = {}
    device: str = "cpu"  # the kind of one that the runtime reports
    kv_folder: str = ""  # where KV may lie that outlives this process; "" for nowhere
    kv_bytes: int = 0  # that all folders beside it may take together
    fit: bool = False  # `context` may be lowered to what the memory holds


WAITING = True  # what a piece yields that only looked whether something is done elsewhere; others yield nothing
Pieces = Generator[Any, None, T]  # long work, in pieces of a fraction of a second each; the result at its end


class Engine(Protocol):
    """A step loop over every running sequence. One thread calls it; nothing here may block but `step`."""

    facts: Facts

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt: special tokens in it are parsed, BOS is added if the model wants one."""

    def make_ready(self, constraint: Constraint) -> Pieces[None]:
        """Does what takes long before the add() that follows at once. Raises Refused for what cannot be enforced.
        Called only where Facts lists the constraint's kind; several may be under way together."""

    def add(self, job: int, ids: Sequence[int], sampling: Sampling, priority: Priority = "interactive") -> None:
        """Admits a sequence or queues it, a batch one behind interactive ones. `ids` fit the context. Raises Refused
        for what it cannot honour, among it a token id that the vocabulary does not have (see `check_tokens`)."""

    def step(self) -> list[Token]:
        """Advances every sequence once (prefill chunks and decodes mixed); [] while prompts are still read."""

    def read(self, job: int) -> tuple[int, int] | None:
        """Of a job that has said nothing yet: how many of its tokens the KV cache holds, and how many of those it held
        before. None while it waits, and where the engine does not know."""

    def text(self, token: int) -> bytes:
        """What a token shows, as in Token."""

    def remove(self, job: int) -> None:
        """Forgets a sequence at once; unknown jobs are ignored."""

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        """A text's vector of length 1. Called only where Facts lists "embeddings". Steps may come between the pieces,
        and another text once the last one is given up."""

    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]:
        """How likely each token but the first was after those before it, and the `top` likeliest at its place. Called
        only where Facts lists "prompt_logprobs"; as for embed()."""

    def rest(self) -> bool:
        """Nobody has asked for a while: does, or begins, one thing that can wait. False where none is left."""

    def close(self) -> None: ...


def check_tokens(ids: Sequence[int], sampling: Sampling, vocabulary: int) -> None:
    """Refuses ids outside the vocabulary: engines crash on them, or answer nonsense."""
    if not ids:
        raise Refused("the prompt is empty", "messages")
    for param, named in (
        ("messages", (min(ids), max(ids))),
        ("logit_bias", sampling.logit_bias),
        ("stop_token_ids", sampling.stop_token_ids),
    ):
        unknown = [token for token in named if not 0 <= token < vocabulary]
        if unknown:
            who = "the prompt" if param == "messages" else f"'{param}'"
            raise Refused(f"{who} names token {unknown[0]}; ids go from 0 to {vocabulary - 1}", param)


class Device(msgspec.Struct, frozen=True):
    """Something a runtime can compute on, as the runtime itself reports it."""

    name: str  # the runtime's own: "CPU", "GPU.0", "CUDA0"
    kind: str  # "cpu" | "gpu" | "npu"
    description: str = ""
    unavailable: str | None = None  # why it cannot be used


CPU = Device("CPU", "cpu")


class Setting(msgspec.Struct, frozen=True):
    """What is best on one host and not on another: `bench` finds out."""

    name: str
    threads: float = 1.0  # of the host's processors
    environment: Mapping[str, str] = {}  # of the worker process, over the runtime's


USUAL = Setting("")
HALF_THE_THREADS = Setting("half the threads", threads=0.5)  # a core may be two processors, or a slow one


class Local(msgspec.Struct, frozen=True):
    """A runtime that runs in a worker of ours."""

    name: str
    format: str  # of the artifacts it loads
    unavailable: Callable[[], str | None]  # why it cannot run here and the remedy, or None
    load: Callable[[Load, Callable[[float], None]], Engine]  # the callable takes the fraction loaded
    options: type[msgspec.Struct]  # what a model's `options:` may hold for it
    environment: Mapping[str, str] = {}  # of the worker process
    features: tuple[str, ...] = ()  # as in Facts: what its engines honour
    devices: Callable[[], list[Device]] = lambda: [CPU]  # asks the runtime; never called in the server's process
    distributions: tuple[str, ...] = ()  # installed packages whose versions change what it does
    settings: tuple[Setting, ...] = ()  # beside the usual one
