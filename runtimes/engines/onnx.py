"""ONNX Runtime: continuous batching over our own KV slots, or GenAI's Generators in turn where the graph wants them."""

import importlib.util
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec

from optimize.onnx_olive.logits import BESIDE, whole_graph
from runtimes import kv
from runtimes.constrain import ConstraintFailed, Guides
from runtimes.contract import (
    EVERYTHING,
    Engine,
    Facts,
    Load,
    Local,
    Logprob,
    Pooling,
    Sampling,
    Scored,
    Token,
    check_tokens,
)
from runtimes.onnx_generators import Generators
from runtimes.onnx_slots import Graph, Slots, read_graph, slots_refusal
from runtimes.sampling import Sampler, scored
from runtimes.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np

DEVICES = {"cpu": "cpu", "cuda": "gpu", "dml": "gpu", "qnn": "npu", "VitisAI": "npu"}  # of the providers
FEATURES = tuple(feature for feature in EVERYTHING if feature != "embeddings")  # the graph gives logits only
SCORED_ROWS = 64  # tokens read at a time where each gives logits


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options: {onnx: {...}}` of a model."""

    provider: Literal["cpu", "cuda", "dml", "qnn", "VitisAI"] = "cpu"  # what the graph was built for
    path: Literal["auto", "slots", "generator"] = "auto"  # auto: slots where the graph fits
    kv_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None  # KV cells for all slots together
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256  # prompt tokens read in one step


class Sequences(Protocol):
    """The model with a number of sequences in its KV cache."""

    slots: int
    copies: bool  # whether one sequence can be copied into another

    def read(self, slot: int, tokens: Sequence[int]) -> "np.ndarray[Any, Any]": ...
    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> "list[np.ndarray[Any, Any]]": ...
    def cut(self, slot: int, length: int, expected: int) -> int: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def close(self) -> None: ...


class Running:
    """A job that was admitted or waits for a slot."""

    def __init__(self, job: int, ids: Sequence[int], sampling: Sampling, order: int) -> None:
        self.job, self.sampling, self.order = job, sampling, order
        self.tokens = list(ids)  # prompt, then what was generated
        self.prompt = len(self.tokens)
        self.ends: frozenset[int] = frozenset()  # ids that end the answer
        self.sampler: Sampler
        self.cached: int | None = None  # prompt tokens reused, of the first admission


class Slot:
    """Its KV outlives its job, for the next prompt that begins alike."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.kv: list[int] = []  # the tokens whose keys and values the cache holds
        self.running: Running | None = None
        self.last_used = 0


class Onnx:
    def __init__(self, load: Load, report: Callable[[float], None]) -> None:
        options, folder = msgspec.convert(load.options, Options), Path(load.path)
        graph = read_graph(folder)
        self._vocabulary = Vocabulary(folder)
        context = min(load.context, self._vocabulary.context_length or graph.context)
        cells = kv.cells(options.kv_tokens, context, load.slots)
        self._sequences: Sequences = load_sequences(load, options, folder, graph, context, cells)
        report(1.0)
        self._cells, self._chunk = cells, options.prefill_chunk
        self._slots = [Slot(index) for index in range(self._sequences.slots)]
        self._waiting: deque[Running] = deque()
        self._jobs: dict[int, Running] = {}
        # After a preemption nobody is admitted until someone ends: else they preempt in turns for ever.
        self._hold = False
        self._order = self._clock = 0
        self._guides: Guides | None = None
        self._scoring: Slots | None = None  # one more session, of a graph with all logits, made for the first prompt
        self._folder, self._graph, self._threads = folder, graph, load.threads
        self.facts = Facts(
            context_length=context,
            slots=self._sequences.slots,
            vocabulary=graph.vocabulary,
            chat_template=self._vocabulary.chat_template,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            device=DEVICES[options.provider],
            features=tuple(name for name in FEATURES if name != "prompt_logprobs" or can_score(self._sequences)),
        )

    # --- the contract ---

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def add(self, job: int, ids: Sequence[int], sampling: Sampling) -> None:
        check_tokens(ids, sampling, self.facts.vocabulary)
        self._order += 1
        running = Running(job, ids, sampling, self._order)
        own = () if sampling.ignore_eos else self._vocabulary.ends
        running.ends = frozenset((*sampling.stop_token_ids, *own))
        guide = self._compiler().guide(sampling.constraint) if sampling.constraint else None
        running.sampler = Sampler(sampling, ids, sorted(running.ends), guide)
        self._jobs[job] = running
        self._waiting.append(running)

    def step(self) -> list[Token]:
        self._admit()
        self._clock += 1
        decoding, reading = self._plan()
        out = []
        if decoding:
            tokens = [running.tokens[-1] for _, running in decoding]
            rows = self._sequences.decode([slot.index for slot, _ in decoding], tokens)
            for (slot, running), token, logits in zip(decoding, tokens, rows, strict=True):
                slot.kv.append(token)
                out.append(self._next(running, logits))
        for slot, running, chunk in reading:
            logits = self._sequences.read(slot.index, chunk)
            slot.kv += chunk
            if len(slot.kv) == len(running.tokens):
                out.append(self._next(running, logits))
        return out

    def text(self, token: int) -> bytes:
        return self._vocabulary.pieces[token]

    def remove(self, job: int) -> None:
        if running := self._jobs.get(job):
            self._end(running)

    def embed(self, ids: Sequence[Sequence[int]], pooling: Pooling) -> list[list[float]]:
        raise NotImplementedError("the graph gives logits only")

    def score(self, ids: Sequence[int], top: int) -> list[Logprob]:
        if self._scoring is None:
            session = open_session(whole_graph(self._folder), self._threads, self._folder)
            self._scoring = Slots(session, self._graph, 1, self.facts.context_length)
        self._scoring.cut(0, 0, 0)
        out = list[Logprob]()
        for start in range(0, len(ids) - 1, SCORED_ROWS):
            rows = self._scoring.read_all(0, ids[start : min(start + SCORED_ROWS, len(ids) - 1)])
            out += scored(rows, ids[start + 1 :][: len(rows)], top, self.text)
        return out

    def close(self) -> None:
        self._jobs.clear()
        self._sequences.close()
        if self._scoring:
            self._scoring.close()

    # --- one step ---

    def _plan(self) -> tuple[list[tuple[Slot, Running]], list[tuple[Slot, Running, list[int]]]]:
        """Who says a token, and which chunks of the prompts are read, oldest job first; makes the room for it."""
        while True:
            busy = [(slot, slot.running) for slot in self._slots if slot.running]
            busy.sort(key=lambda pair: pair[1].order)
            decoding = [(slot, running) for slot, running in busy if len(running.tokens) - len(slot.kv) == 1]
            reading, room = [], self._chunk
            for slot, running in busy:
                chunk = running.tokens[len(slot.kv) : len(slot.kv) + room]
                if len(running.tokens) - len(slot.kv) > 1 and chunk:
                    reading.append((slot, running, chunk))
                    room -= len(chunk)
            if self._held() + len(decoding) + self._chunk - room <= self._cells:
                return decoding, reading
            self._make_room()

    def _next(self, running: Running, logits: "np.ndarray[Any, Any]") -> Token:
        cached = running.cached or 0
        try:
            choice = running.sampler.choose(logits)
            complete = choice.token not in running.ends and running.sampler.accept(choice.token)
        except ConstraintFailed as error:
            self._end(running)
            return Token(running.job, -1, b"", failure=str(error))
        top = tuple(Scored(token, self.text(token), logprob) for token, logprob in choice.top)
        if choice.token in running.ends:
            self._end(running)
            return Token(running.job, -1, b"", "stop", cached, choice.logprob, top)
        running.tokens.append(choice.token)
        generated = len(running.tokens) - running.prompt
        full = generated == running.sampling.max_tokens or len(running.tokens) >= self.facts.context_length
        if full or complete:
            self._end(running)
        finish = "stop" if complete else "length" if full else None
        return Token(running.job, choice.token, self.text(choice.token), finish, cached, choice.logprob, top)

    def _end(self, running: Running) -> None:
        del self._jobs[running.job]
        self._hold = False
        for slot in self._slots:
            if slot.running is running:
                slot.running, slot.last_used = None, self._clock
                return
        self._waiting.remove(running)

    def _compiler(self) -> Guides:
        if self._guides is None:
            own = self._vocabulary
            self._guides = Guides(own.pieces, sorted(own.special), own.ends, self.encode)
        return self._guides

    # --- slots and the KV cache ---

    def _held(self) -> int:
        return sum(len(slot.kv) for slot in self._slots)

    def _admit(self) -> None:
        while self._waiting:
            free = [slot for slot in self._slots if not slot.running]
            if not free or (self._hold and len(free) < len(self._slots)):
                return
            running = self._waiting.popleft()
            slot = self._place(running.tokens, free)
            slot.running = running
            if running.cached is None:
                running.cached = len(slot.kv)

    def _place(self, tokens: list[int], free: list[Slot]) -> Slot:
        """The free slot for a prompt, holding as much of its beginning as any slot has that can give it."""
        most = len(tokens) - 1  # the last token is always computed: it gives the logits
        common = {slot.index: min(kv.common_prefix(slot.kv, tokens), most) for slot in self._slots}
        givers = self._slots if self._sequences.copies else free
        source = max(givers, key=lambda s: (common[s.index], s in free))
        keep = common[source.index]
        # Overwrite what is least worth keeping, unless a free slot already holds the best beginning and little else.
        target = min(free, key=lambda s: (len(s.kv) > 0, s.last_used))
        if source in free and (2 * keep >= len(source.kv) or not self._sequences.copies):
            target = source
        if target is source:
            self._cut(target, keep, len(tokens))
            return target
        self._cut(target, 0, len(tokens))
        if keep and self._held() + keep < self._cells:
            self._sequences.copy(source.index, target.index, keep)
            target.kv = tokens[:keep]
        return target

    def _cut(self, slot: Slot, length: int, expected: int = 0) -> None:
        """`expected`: tokens that the slot will soon hold."""
        if length < len(slot.kv):
            slot.kv = slot.kv[: self._sequences.cut(slot.index, length, expected)]

    def _make_room(self) -> None:
        """Drops the idle cache used longest ago, else sends the youngest job back to wait, to be read again."""
        idle = [slot for slot in self._slots if not slot.running and slot.kv]
        if idle:
            self._cut(min(idle, key=lambda s: s.last_used), 0)
            return
        slot = max((s for s in self._slots if s.running), key=lambda s: s.running.order)  # type: ignore[union-attr]
        assert slot.running
        self._waiting.appendleft(slot.running)
        slot.running = None
        self._cut(slot, 0)
        self._hold = True


def load_sequences(load: Load, options: Options, folder: Path, graph: Graph, context: int, cells: int) -> Sequences:
    """By slots of our own where provider and graph allow it."""
    if options.provider != "cpu":
        refusal: str | None = f"slots are not served on '{options.provider}'"
    elif options.path == "generator":
        refusal = "'generator' is asked for"
    else:
        session = open_session(str(folder / graph.file), load.threads, folder)
        refusal = slots_refusal(session, graph)
        if not refusal:
            check_memory(cells, graph, load.free_bytes)
            return Slots(session, graph, load.slots, context)
        del session
    if options.path == "slots":
        raise ValueError(f"options.onnx.path 'slots' cannot be had: {refusal}; take 'auto'")
    slots = max(1, min(load.slots, cells // context))  # a Generator takes its whole context at once
    check_memory(slots * context, graph, load.free_bytes)
    return Generators(folder, options.provider, load.threads, slots, context)


def can_score(sequences: Sequences) -> bool:
    """Rewiring the graph takes the package it was built with, and a cache of ours."""
    return isinstance(sequences, Slots) and importlib.util.find_spec("onnx") is not None


def open_session(model: str | bytes, threads: int, folder: Path) -> Any:
    """Of a file, or of a graph whose weights are in `folder`."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3  # errors
    # A thread that spins for one the kernel has put aside costs a busy machine several times the speed.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(model, bytes):
        settings.add_session_config_entry(BESIDE, str(folder))
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def check_memory(cells: int, graph: Graph, free: int) -> None:
    """The kernel would kill the process when the KV cache fills up, long after the load."""
    needed = cells * graph.layers * 2 * graph.heads * graph.width * 4
    kv.check_room("onnx", cells, needed, free)


def unavailable() -> str | None:
    needed = {"onnxruntime": "onnxruntime", "onnxruntime_genai": "onnxruntime-genai", "llguidance": "llguidance"}
    for module, distribution in needed.items():
        if importlib.util.find_spec(module) is None:
            return f"{distribution} is not installed; pip install 'enginehouse[onnx]'"
    return None


def load(load: Load, report: Callable[[float], None]) -> Engine:
    return Onnx(load, report)


RUNTIME = Local(
    name="onnx",
    format="onnx",
    unavailable=unavailable,
    load=load,
    options=Options,
    features=FEATURES,
    distributions=("onnxruntime", "onnxruntime-genai"),
    environment={"ORT_DISABLE_TELEMETRY": "1"},  # onnxruntime and onnxruntime-genai phone home by default
)
