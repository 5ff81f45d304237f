"""ONNX Runtime: continuous batching over our own KV slots, or GenAI's Generators in turn where the graph wants them."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec

from enginehouse.optimize.toolchains.onnx.logits import BESIDE, choosing_graph
from enginehouse.runtimes.contract import (
    EVERYTHING,
    HALF_THE_THREADS,
    Engine,
    Facts,
    Load,
    Local,
    Logprob,
    Pieces,
    Pooling,
    Sampling,
)
from enginehouse.runtimes.decoding import kv_cache
from enginehouse.runtimes.decoding.batching import STRETCH, BatchedEngine, Chunk
from enginehouse.runtimes.decoding.kv_disk import kv_disk_of
from enginehouse.runtimes.decoding.sampling import Sampler, scored
from enginehouse.runtimes.decoding.tokenizer import Vocabulary
from enginehouse.runtimes.engines.onnx.generators import Generators
from enginehouse.runtimes.engines.onnx.slots import Graph, Slots, read_graph, slots_refusal
from enginehouse.runtimes.grammar.matcher import GrammarCompiler, Matcher

if TYPE_CHECKING:
    import numpy as np

DEVICES = {"cpu": "cpu", "cuda": "gpu", "dml": "gpu", "qnn": "npu", "VitisAI": "npu"}  # of the providers
FEATURES = tuple(feature for feature in EVERYTHING if feature != "embeddings")  # the graph gives logits only
GENERATOR_CONTEXT = 8192  # tokens, where more is not asked for: a Generator takes the memory of all of them at once
SCORED_ROWS = 64  # tokens read at a time where each gives logits
READ_APART = 64  # tokens; a prompt is read in a run of its own anyway


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options: {onnx: {...}}` of a model."""

    provider: Literal["cpu", "cuda", "dml", "qnn", "VitisAI"] = "cpu"  # what the graph was built for
    path: Literal["auto", "slots", "generator"] = "auto"  # auto: slots where the graph fits
    kv_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None  # KV cells for all slots together
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256  # prompt tokens read in one step
    prefill_stretch: Annotated[float, msgspec.Meta(ge=1)] = STRETCH  # of a lone answer's step
    speculation: Literal["lookup", "off"] = "lookup"  # guesses of what follows, from the text itself


class Sequences(Protocol):
    """The model with a number of sequences in its KV cache, as Model wants it."""

    slots: int
    context: int  # tokens of one
    cells: int  # tokens of all together
    shares: bool
    guesses: int

    def forward(self, chunks: Sequence[Chunk]) -> "list[np.ndarray[Any, Any]]": ...
    def reusable(self, slot: int, length: int) -> bool: ...
    def truncate(self, slot: int, length: int, expected: int) -> int: ...
    def copy(self, source: int, target: int, length: int) -> int: ...
    def close(self) -> None: ...


class Onnx:
    def __init__(self, load: Load, report: Callable[[float], None]) -> None:
        options, folder = msgspec.convert(load.options, Options), Path(load.path)
        graph = read_graph(folder)
        self._vocabulary = Vocabulary(folder)
        each, own = token_bytes(graph), self._vocabulary.context_length or graph.context
        context = kv_cache.context_of(load, own, options.kv_tokens, each)
        self._sequences: Sequences = load_sequences(load, options, folder, graph, context)
        report(1.0)
        self._scoring: Slots | None = None  # one more KV cache, made for the first prompt
        self._graph = graph
        self.encode = self._vocabulary.encode
        self.ends: Sequence[int] = self._vocabulary.ends
        sequences = self._sequences
        self.shares: bool = sequences.shares
        self.guesses = sequences.guesses if options.speculation == "lookup" else 0
        self.apart = READ_APART if isinstance(sequences, Slots) else 0
        self.forgets = False
        self.saves = isinstance(sequences, Slots)
        self.forward, self.reusable = sequences.forward, sequences.reusable
        self.truncate, self.copy = sequences.truncate, sequences.copy
        self.facts = Facts(
            context_length=sequences.context,
            slots=sequences.slots,
            vocabulary=graph.vocabulary,
            chat_template=self._vocabulary.chat_template,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            device=DEVICES[options.provider],
            features=tuple(
                name
                for name in FEATURES
                if (name != "prompt_logprobs" or can_score(sequences)) and (name != "prediction" or self.guesses)
            ),
            longest_token=self._vocabulary.longest_token,
            special_tokens=self._vocabulary.special_texts,
            token_bytes=each,
            kv_bytes=sequences.cells * each,
            kv_tokens=sequences.cells,
        )

    def save(self, slot: int) -> memoryview:
        assert isinstance(self._sequences, Slots)
        return self._sequences.save(slot)

    def restore(self, slot: int, length: int, state: memoryview) -> bool:
        assert isinstance(self._sequences, Slots)
        return self._sequences.restore(slot, length, state)

    def keep(self, slot: int) -> memoryview:
        raise NotImplementedError("these caches can be cut anywhere")

    def go_back(self, slot: int, length: int, state: memoryview) -> None:
        raise NotImplementedError("these caches can be cut anywhere")

    def text(self, token: int) -> bytes:
        return self._vocabulary.pieces[token]

    def grammar_compiler(self) -> GrammarCompiler:
        return self._vocabulary.grammar_compiler(self.facts.vocabulary)

    def sampler(
        self, sampling: Sampling, prompt: Sequence[int], ends: Sequence[int], matcher: Matcher | None
    ) -> Sampler:
        return Sampler(sampling, prompt, ends, matcher)

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        raise NotImplementedError("the graph gives logits only")

    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]:
        if self._scoring is None:
            assert isinstance(self._sequences, Slots)
            context = self.facts.context_length
            self._scoring = Slots(self._sequences.session, self._graph, 1, context, context)
        self._scoring.truncate(0, 0, 0)
        out = list[Logprob]()
        for start in range(0, len(ids) - 1, SCORED_ROWS):
            part = ids[start : min(start + SCORED_ROWS, len(ids) - 1)]
            rows = self._scoring.append(0, part, len(part))
            out += scored(rows, ids[start + 1 :][: len(rows)], top, self.text)
            yield
        return out

    def close(self) -> None:
        self._sequences.close()
        if self._scoring:
            self._scoring.close()


def load_sequences(load: Load, options: Options, folder: Path, graph: Graph, context: int) -> Sequences:
    """By slots of our own where provider and graph allow it."""
    if options.provider != "cpu":
        refusal: str | None = f"slots are not served on '{options.provider}'"
    elif options.path == "generator":
        refusal = "'generator' is asked for"
    else:
        session = open_session(folder / graph.file, load.threads)
        refusal = slots_refusal(session, graph)
        if not refusal:
            cells = kv_cache.cells(options.kv_tokens, context, load.slots)
            kv_cache.check_room("onnx", cells, cells * token_bytes(graph), load.free_bytes)
            return Slots(session, graph, load.slots, context, cells)
        del session
    if options.path == "slots":
        raise ValueError(f"options.onnx.path 'slots' cannot be had: {refusal}; take 'auto'")
    context = min(context, GENERATOR_CONTEXT) if load.fit else context
    slots = max(1, min(load.slots, kv_cache.cells(options.kv_tokens, context, load.slots) // context))
    kv_cache.check_room("onnx", slots * context, slots * context * token_bytes(graph), load.free_bytes)
    return Generators(folder, options.provider, load.threads, slots, context)


def can_score(sequences: Sequences) -> bool:
    return isinstance(sequences, Slots) and not sequences.last_only


def open_session(file: Path, threads: int) -> Any:
    """Rewired to give the logits of any place, where the package is there that it was built with."""
    import onnxruntime

    model = choosing_graph(file) if importlib.util.find_spec("onnx") else str(file)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3  # errors
    # A thread that spins for one the kernel has put aside costs a busy machine several times the speed.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(model, bytes):
        settings.add_session_config_entry(BESIDE, str(file.parent))
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def token_bytes(graph: Graph) -> int:
    """Of the KV cache."""
    return graph.layers * 2 * graph.heads * graph.width * 4


def unavailable() -> str | None:
    needed = {"onnxruntime": "onnxruntime", "onnxruntime_genai": "onnxruntime-genai", "llguidance": "llguidance"}
    for module, distribution in needed.items():
        if importlib.util.find_spec(module) is None:
            return f"{distribution} is not installed; pip install 'enginehouse[onnx]'"
    return None


def load(load: Load, report: Callable[[float], None]) -> Engine:
    options = msgspec.convert(load.options, Options)
    return BatchedEngine(Onnx(load, report), options.prefill_chunk, options.prefill_stretch, kv_disk_of(load))


RUNTIME = Local(
    name="onnx",
    format="onnx",
    unavailable=unavailable,
    load=load,
    options=Options,
    features=FEATURES,
    distributions=("onnxruntime", "onnxruntime-genai"),
    environment={"ORT_DISABLE_TELEMETRY": "1"},  # onnxruntime and onnxruntime-genai phone home by default
    settings=(HALF_THE_THREADS,),
)
