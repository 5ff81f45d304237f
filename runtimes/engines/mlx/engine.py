"""MLX: continuous batching over mlx_lm's BatchGenerator. All of it happens in the one thread that calls the engine: a
second thread that touches MLX ends the process."""

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from enginehouse.optimize.toolchains.mlx.library import import_library, load_model
from enginehouse.runtimes.contract import (
    EVERYTHING,
    Device,
    Engine,
    Facts,
    Load,
    Local,
    Logprob,
    Pieces,
    Pooling,
    Priority,
    Sampling,
    Token,
)
from enginehouse.runtimes.decoding import kv_cache
from enginehouse.runtimes.decoding.batching import KEEP_BEFORE_END
from enginehouse.runtimes.decoding.jobs import Jobs, Running
from enginehouse.runtimes.decoding.pooling import pooled
from enginehouse.runtimes.decoding.priorities import Riders
from enginehouse.runtimes.decoding.sampling import Choice, scored, with_logprobs
from enginehouse.runtimes.decoding.tokenizer import Vocabulary
from enginehouse.runtimes.engines.mlx.sampling import State, choosing
from enginehouse.runtimes.grammar.matcher import GrammarCompiler

FEATURES = tuple(name for name in EVERYTHING if name != "prediction")
SCORED_ROWS = 64  # tokens read at a time where each gives logits
WORTH_SHARING = 16  # tokens of a common beginning; fewer are read again sooner than copied
WEIGHTS_AT_ONCE = 256 << 20  # bytes read between two reports of the progress


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options: {mlx: {...}}` of a model."""

    kv_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None  # KV cells shared by all slots
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256  # prompt tokens read in one step


class Kept(msgspec.Struct):
    """The KV of a sequence that ended, for the next prompt that begins alike."""

    tokens: list[int]
    cache: list[Any]
    last_used: int


class Mlx:
    def __init__(self, load: Load, report: Callable[[float], None]) -> None:
        import_library()
        import mlx.core as mx
        from mlx_lm.generate import BatchGenerator

        options = msgspec.convert(load.options, Options)
        device = mx.Device(mx.gpu if load.device == "gpu" else mx.cpu)
        mx.set_default_device(device)
        if device.type == mx.cpu:
            mx.disable_compile()  # g++ would take two seconds for each kernel when first used, and gain nothing
        folder = Path(load.path)
        self._vocabulary = Vocabulary(folder)
        self._model = load_model(folder)
        # What is below the head; hidden states cannot be had where a family keeps it elsewhere.
        self._body = getattr(getattr(self._model, "language_model", self._model), "model", None)
        size = measure(self._model)
        fixed = size.slot_bytes * load.slots + weight_bytes(self._model)
        own = self._vocabulary.context_length
        context = kv_cache.context_of(load, own, options.kv_tokens, size.token_bytes, fixed)
        self._cells = kv_cache.cells(options.kv_tokens, context, load.slots)
        kv_bytes = size.token_bytes * self._cells + size.slot_bytes * load.slots
        check_memory(self._model, self._cells, kv_bytes, load.free_bytes)
        self._window = size.window
        read_weights(self._model, report)
        self._chunk = options.prefill_chunk
        self._generator = BatchGenerator(
            self._logits,
            completion_batch_size=load.slots,
            prefill_batch_size=load.slots,
            prefill_step_size=self._chunk,
            stream=mx.new_stream(device),
        )
        self._active: dict[int, Running[State]] = {}  # by uid
        self._kept: list[Kept] = []
        self._beginnings: dict[int, Kept] = {}  # of what runs, by uid
        self._clock = 0
        self._riders = Riders({})
        self.facts = Facts(
            context_length=context,
            slots=load.slots,
            vocabulary=min(self._vocabulary.size, size.vocabulary),
            chat_template=self._vocabulary.chat_template,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            device=load.device,
            features=FEATURES if self._body else tuple(name for name in FEATURES if name != "embeddings"),
            longest_token=self._vocabulary.longest_token,
            special_tokens=self._vocabulary.special_texts,
            token_bytes=size.token_bytes,
            kv_bytes=kv_bytes,
            kv_tokens=self._cells,
        )
        self._jobs = Jobs(self.facts, self.text, self._grammar_compiler, self._state)
        self.make_ready = self._jobs.make_ready

    # --- the contract ---

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def add(self, job: int, ids: Sequence[int], sampling: Sampling, priority: Priority = "interactive") -> None:
        self._jobs.add(job, ids, sampling, () if sampling.ignore_eos else self._vocabulary.ends, priority)

    def step(self) -> list[Token]:
        self._clock += 1
        self._admit()
        self._make_room()
        if not self._active:
            return []
        answering = len(self._active) if not any(running.state.unread for running in self._active.values()) else 0
        began = time.perf_counter()
        read, said = self._generator.next()
        if answering:
            self._riders.note(answering, time.perf_counter() - began)
        for part in read:
            done, total = part.progress
            state = self._active[part.uid].state
            state.unread = total - done
            if state.unread == KEEP_BEFORE_END and self._window < math.inf:
                self._keep_beginning(state)
        tokens = [self._next(self._active[one.uid], one.token) for one in said]
        self._end([self._jobs.all[token.job] for token in tokens if token.finish or token.failure])
        return tokens

    def read(self, job: int) -> tuple[int, int] | None:
        running = self._jobs.all[job]
        if running.state.uid not in self._active:
            return None
        return len(running.tokens) - running.state.unread, running.cached or 0

    def text(self, token: int) -> bytes:
        return self._vocabulary.pieces[token]

    def remove(self, job: int) -> None:
        if running := self._jobs.all.get(job):
            self._end([running])

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        import mlx.core as mx
        import numpy as np
        from mlx_lm.models.cache import make_prompt_cache

        assert self._body
        cache, parts = make_prompt_cache(self._model), []
        for start in range(0, len(ids), self._chunk):
            hidden = self._body(mx.array([ids[start : start + self._chunk]]), cache=cache)[0].astype(mx.float32)
            parts.append(np.array(hidden))
            yield
        return pooled(np.concatenate(parts), pooling)

    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]:
        import mlx.core as mx
        import numpy as np
        from mlx_lm.models.cache import make_prompt_cache

        cache, out = make_prompt_cache(self._model), list[Logprob]()
        for start in range(0, len(ids) - 1, SCORED_ROWS):
            chunk = ids[start : min(start + SCORED_ROWS, len(ids) - 1)]
            rows = np.array(self._logits(mx.array([chunk]), cache)[0])
            out += scored(rows, ids[start + 1 :][: len(rows)], top, self.text)
            yield
        return out

    def rest(self) -> bool:
        return False

    def close(self) -> None:
        import mlx.core as mx

        self._end(list(self._jobs.all.values()))
        self._jobs.close()
        self._kept.clear()
        self._beginnings.clear()
        self._generator.close()
        del self._generator, self._model, self._body
        mx.clear_cache()

    # --- one step ---

    def _logits(self, tokens: Any, cache: list[Any]) -> Any:
        """In 32 bits: taking the normalizer from 16-bit logits makes equals of the two best."""
        import mlx.core as mx

        return self._model(tokens, cache=cache)[..., : self.facts.vocabulary].astype(mx.float32)

    def _next(self, running: Running[State], token: int) -> Token:
        state = running.state
        if state.stuck == running.generated:  # chosen without the matcher: not shown
            return running.failed(state.why_stuck)
        return self._jobs.token(running, self._choice(running, token), state.complete)

    def _choice(self, running: Running[State], token: int) -> Choice:
        count = running.sampling.logprobs
        if count is None:
            return Choice(token)
        import numpy as np

        return with_logprobs(token, np.array(running.state.rows.pop(running.generated))[0], count)

    def _end(self, ended: list[Running[State]]) -> None:
        for running in ended:
            self._jobs.end(running)
            self._jobs.hold = False
            self._active.pop(running.state.uid, None)
        states = [running.state for running in ended]
        self._keep_whole([state.uid for state in states if state.uid >= 0 and not state.unread])
        for state in states:
            if beginning := self._beginnings.pop(state.uid, None):  # worth more than the whole
                beginning.last_used = self._clock + 1
        self._generator.remove([state.uid for state in states if state.unread])

    def _keep_whole(self, uids: list[int]) -> None:
        """Takes sequences whose prompts were read out of the batch."""
        for cache, tokens in self._generator.remove(uids, return_prompt_caches=True).values():
            self._keep(Kept(list(tokens), cache, self._clock))

    def _state(self, running: Running[State]) -> State:
        sampling = running.sampling
        return State(sampling.seed, self._jobs.matcher(sampling.constraint) if sampling.constraint else None)

    def _grammar_compiler(self) -> GrammarCompiler:
        return self._vocabulary.grammar_compiler(self.facts.vocabulary)

    # --- slots and the KV cache ---

    def _admit(self) -> None:
        jobs = self._jobs
        for running in self._riders.in_the_way(self._active.values(), jobs):
            if running.state.unread:
                self._generator.remove([running.state.uid])
            else:
                self._keep_whole([running.state.uid])
            self._forget(running)
            jobs.wait(running)
        while jobs.waiting and self._riders.may_begin(jobs.waiting[0], self._active.values(), jobs):
            running = jobs.waiting[0]
            source, shared = self._find(running.tokens)
            reading = [other.state.unread for other in self._active.values() if other.state.unread]
            unread = len(running.tokens) - shared
            if reading and (len(reading) + 1) * max(*reading, unread) > self._chunk:
                return  # short prompts are read together, a long one alone: those who answer wait for one chunk
            if self._active and self._cells_taken(running) > self._cells:
                return
            jobs.waiting.pop(0)
            self._insert(running, source, shared)

    def _insert(self, running: Running[State], source: "Kept | Running[State] | None", shared: int) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        cache = self._beginning(source, shared) if source else make_prompt_cache(self._model)
        tokens = running.tokens
        sampler, processors = choosing(running, self.facts.vocabulary)
        end = max(shared, running.prompt - KEEP_BEFORE_END) if self._window < math.inf else shared
        (running.state.uid,) = self._generator.insert_segments(
            [[tokens[shared:end], tokens[end:]]],
            [self.facts.context_length + 1],  # we say when it ends
            caches=[cache],
            all_tokens=[tokens[:shared]],
            samplers=[sampler],
            logits_processors=[processors],
        )
        running.state.unread = len(tokens) - shared
        running.note_slot(shared, "memory")
        self._active[running.state.uid] = running

    def _find(self, tokens: list[int]) -> "tuple[Kept | Running[State] | None, int]":
        """Whose KV begins as this prompt does, and how far. The last token is always computed: it gives the logits."""
        best: Kept | Running[State] | None = None
        longest = WORTH_SHARING - 1
        running = [other for other in self._active.values() if not other.state.unread]
        sources: list[Kept | Running[State]] = [*self._kept, *running]
        for source in sources:
            common = kv_cache.common_prefix(source.tokens, tokens[:-1])
            whole = common == len(source.tokens)
            if common > longest and (whole or len(source.tokens) < self._window):
                best, longest = source, common
        return best, longest if best else 0

    def _beginning(self, source: "Kept | Running[State]", shared: int) -> list[Any]:
        """A copy of a sequence's KV, cut after `shared` tokens."""
        import copy

        from mlx_lm.models.cache import trim_prompt_cache

        if isinstance(source, Kept):
            source.last_used = self._clock
            cache, held = copy.deepcopy(source.cache), len(source.tokens)  # the arrays themselves are shared
        else:
            cache, tokens = self._generator.extract_cache([source.state.uid])[source.state.uid]
            held = len(tokens)
        if held > shared:
            trim_prompt_cache(cache, held - shared)
        return list(cache)

    def _keep(self, new: Kept) -> None:
        """In place of what it begins with, if it can be cut back to that."""
        import mlx.core as mx

        mx.eval([entry.state for entry in new.cache])  # until then it holds the KV of the whole batch
        if len(new.tokens) < self._window:
            self._kept = [
                old
                for old in self._kept
                if len(old.tokens) > len(new.tokens) or kv_cache.common_prefix(old.tokens, new.tokens) < len(old.tokens)
            ]
        self._kept.append(new)

    def _keep_beginning(self, state: State) -> None:
        """Of a sequence that cannot be cut: the next turn of a chat parts from this one where the answer began."""
        cache, tokens = self._generator.extract_cache([state.uid])[state.uid]
        self._beginnings[state.uid] = Kept(list(tokens), list(cache), self._clock)
        self._keep(self._beginnings[state.uid])

    def _cells_taken(self, *more: Running[State]) -> int:
        """By those who run: mlx_lm gives each of them as much as the longest needs."""
        lengths = [len(running.tokens) + 1 for running in (*self._active.values(), *more)]
        return len(lengths) * max(lengths, default=0)

    def _make_room(self) -> None:
        """Drops the kept KV used longest ago, then sends the youngest jobs back to wait, to be read again."""
        self._kept.sort(key=lambda kept: kept.last_used)
        room = self._cells - self._cells_taken()
        while self._kept and sum(len(kept.tokens) for kept in self._kept) > room:
            del self._kept[0]
        while len(self._active) > 1 and self._cells_taken() > self._cells:
            running = max(self._active.values(), key=lambda other: other.rank)
            self._generator.remove([running.state.uid])
            self._forget(running)
            self._jobs.send_back(running)

    def _forget(self, running: Running[State]) -> None:
        del self._active[running.state.uid]
        self._beginnings.pop(running.state.uid, None)
        running.state.uid, running.state.unread = -1, 0


# --- loading ---


class Size(msgspec.Struct, frozen=True):
    """What a model asks of its caches."""

    vocabulary: int  # width of the logits
    token_bytes: int  # of keys and values
    slot_bytes: int  # of states that do not grow
    window: float  # tokens; a longer sequence cannot give back a part of what was read


def measure(model: Any) -> Size:
    """From a step that is never computed."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    if unable := [type(entry).__name__ for entry in cache if not hasattr(entry, "merge")]:
        raise ValueError(f"mlx_lm cannot run several sequences of this architecture at once: {unable[0]}")
    logits = model(mx.array([[0]]), cache=cache)
    token_bytes, slot_bytes, window = 0, 0, math.inf
    entries = list(cache)
    while entries:
        entry = entries.pop()
        if parts := getattr(entry, "caches", None):
            entries.extend(parts)
        elif (keys := getattr(entry, "keys", None)) is not None:
            token_bytes += entry.nbytes // keys.shape[2]
            window = min(window, getattr(entry, "max_size", math.inf))
        else:
            slot_bytes, window = slot_bytes + entry.nbytes, 0
    return Size(logits.shape[-1], token_bytes, slot_bytes, window)


def weight_bytes(model: Any) -> int:
    from mlx.utils import tree_flatten

    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def check_memory(model: Any, cells: int, kv_bytes: int, free: int) -> None:
    """MLX does not fail where memory ends: the process dies of it."""
    import mlx.core as mx

    weights = weight_bytes(model)
    limits = [free, int(mx.device_info().get("max_recommended_working_set_size", 0))]
    limit = min((known for known in limits if known), default=0)
    needed = (weights + kv_bytes) / kv_cache.MOST_OF_FREE
    if limit and needed > limit:
        raise kv_cache.NoRoom(
            f"weights of {weights >> 20} MiB and a KV cache of {cells} tokens, {kv_bytes >> 20} MiB, do not fit the "
            f"{limit >> 20} MiB of memory that are free; lower 'context', 'slots' or options.mlx.kv_tokens",
            needed + 1,
        )


def read_weights(model: Any, report: Callable[[float], None]) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    arrays = [array for _, array in tree_flatten(model.parameters())]
    total = sum(array.nbytes for array in arrays)
    done = 0
    while arrays:
        part, size = [], 0
        while arrays and size < WEIGHTS_AT_ONCE:
            part.append(arrays.pop())
            size += part[-1].nbytes
        mx.eval(part)
        done += size
        report(done / total)


def unavailable() -> str | None:
    if sys.platform not in ("darwin", "linux"):
        return "MLX runs on macOS and Linux only"
    for module, distribution in (("mlx", "mlx"), ("mlx_lm", "mlx-lm"), ("llguidance", "llguidance")):
        if importlib.util.find_spec(module) is None:
            return f"'{distribution}' is not installed; pip install 'enginehouse[mlx]'"
    return None


def devices() -> list[Device]:
    """Where there is a GPU, MLX computes on it first. Written from the documentation for all but the CPU."""
    import mlx.core as mx

    cpu = Device("CPU", "cpu", "for correctness only: its kernels are plain loops" if sys.platform == "linux" else "")
    if not mx.is_available(mx.gpu):
        return [cpu]
    return [Device("GPU", "gpu", str(mx.device_info().get("device_name", ""))), cpu]


def load(load: Load, report: Callable[[float], None]) -> Engine:
    return Mlx(load, report)


RUNTIME = Local(
    name="mlx",
    format="mlx",
    unavailable=unavailable,
    load=load,
    options=Options,
    features=FEATURES,
    devices=devices,
    distributions=("mlx", "mlx-lm"),
    environment={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
)
