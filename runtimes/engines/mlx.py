"""MLX: continuous batching over mlx_lm's BatchGenerator. All of it happens in the one thread that calls the engine: a
second thread that touches MLX ends the process."""

import importlib.util
import math
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from optimize.mlx.library import import_library, load_model
from runtimes import kv
from runtimes.constrain import ConstraintFailed, Guide, Guides
from runtimes.contract import (
    EVERYTHING,
    Constraint,
    Device,
    Engine,
    Facts,
    Load,
    Local,
    Logprob,
    Pooling,
    Refused,
    Sampling,
    Scored,
    Token,
    check_tokens,
)
from runtimes.pooling import pooled
from runtimes.sampling import GREEDY_BELOW, likeliest, log_probabilities, scored
from runtimes.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np

SCORED_ROWS = 64  # tokens read at a time where each gives logits
WORTH_SHARING = 16  # tokens of a common beginning; fewer are read again sooner than copied
WEIGHTS_AT_ONCE = 256 << 20  # bytes read between two reports of the progress
ODD = 0x9E3779B97F4A7C15  # spreads seeds over 64 bits, so that those of neighbouring positions do not meet


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options: {mlx: {...}}` of a model."""

    kv_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None  # KV cells shared by all slots
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256  # prompt tokens read in one step


class Running:
    """A job that was admitted or waits for a slot."""

    def __init__(self, job: int, ids: Sequence[int], sampling: Sampling, order: int) -> None:
        self.job, self.sampling, self.order = job, sampling, order
        self.tokens = list(ids)  # prompt, then what was generated
        self.prompt = len(self.tokens)
        self.seed = random.getrandbits(64) if sampling.seed is None else sampling.seed
        self.ends: frozenset[int] = frozenset()  # ids that end the answer
        self.guide: Guide | None = None
        self.accepted = 0  # generated tokens the guide knows of
        self.complete = False  # the guide admits nothing more
        self.stuck: int | None = None  # the generated token that the guide could not be asked about
        self.why_stuck = ""
        self.rows: dict[int, Any] = {}  # logits by generated token, where log-probabilities are wanted
        self.uid = -1  # BatchGenerator's name of it
        self.unread = 0  # tokens of the prompt
        self.cached: int | None = None  # prompt tokens reused, of the first admission

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt


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
        context = min(load.context, self._vocabulary.context_length or load.context)
        self._cells = kv.cells(options.kv_tokens, context, load.slots)
        size = measure(self._model)
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
        self._waiting: deque[Running] = deque()
        self._jobs: dict[int, Running] = {}
        self._active: dict[int, Running] = {}  # by uid
        self._kept: list[Kept] = []
        self._hold = False  # after a preemption nobody is admitted until someone ends: else they preempt in turns
        self._order = self._clock = 0
        self._guides: Guides | None = None
        self.facts = Facts(
            context_length=context,
            slots=load.slots,
            vocabulary=min(self._vocabulary.size, size.vocabulary),
            chat_template=self._vocabulary.chat_template,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            device=load.device,
            features=EVERYTHING if self._body else tuple(name for name in EVERYTHING if name != "embeddings"),
        )

    # --- the contract ---

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def add(self, job: int, ids: Sequence[int], sampling: Sampling) -> None:
        check_tokens(ids, sampling, self.facts.vocabulary)
        self._order += 1
        running = Running(job, ids, sampling, self._order)
        running.ends = frozenset(sampling.stop_token_ids) | frozenset(
            () if sampling.ignore_eos else self._vocabulary.ends
        )
        running.guide = self._guide(sampling.constraint) if sampling.constraint else None
        self._jobs[job] = running
        self._waiting.append(running)

    def step(self) -> list[Token]:
        self._clock += 1
        self._admit()
        self._make_room()
        if not self._active:
            return []
        read, said = self._generator.next()
        for part in read:
            done, total = part.progress
            self._active[part.uid].unread = total - done
        tokens = [self._next(self._active[one.uid], one.token) for one in said]
        self._end([self._jobs[token.job] for token in tokens if token.finish or token.failure])
        return tokens

    def text(self, token: int) -> bytes:
        return self._vocabulary.pieces[token]

    def remove(self, job: int) -> None:
        if job in self._jobs:
            self._end([self._jobs[job]])

    def embed(self, ids: Sequence[Sequence[int]], pooling: Pooling) -> list[list[float]]:

        return [pooled(self._hidden_states(text), pooling) for text in ids]

    def score(self, ids: Sequence[int], top: int) -> list[Logprob]:
        import mlx.core as mx
        import numpy as np
        from mlx_lm.models.cache import make_prompt_cache

        cache, out = make_prompt_cache(self._model), list[Logprob]()
        for start in range(0, len(ids) - 1, SCORED_ROWS):
            chunk = ids[start : min(start + SCORED_ROWS, len(ids) - 1)]
            rows = np.array(self._logits(mx.array([chunk]), cache)[0])
            out += scored(rows, ids[start + 1 :][: len(rows)], top, self.text)
        return out

    def close(self) -> None:
        import mlx.core as mx

        self._end(list(self._jobs.values()))
        self._kept.clear()
        self._generator.close()
        del self._generator, self._model, self._body
        mx.clear_cache()

    # --- one step ---

    def _logits(self, tokens: Any, cache: list[Any]) -> Any:
        """In 32 bits: taking the normalizer from 16-bit logits makes equals of the two best."""
        import mlx.core as mx

        return self._model(tokens, cache=cache)[..., : self.facts.vocabulary].astype(mx.float32)

    def _next(self, running: Running, token: int) -> Token:
        sampling, cached = running.sampling, running.cached or 0
        if running.stuck == running.generated:  # chosen without the guide: not shown
            return Token(running.job, -1, b"", cached=cached, failure=running.why_stuck)
        logprob, top = self._scores(running, token)
        if token in running.ends:
            return Token(running.job, -1, b"", "stop", cached, logprob, top)
        running.tokens.append(token)
        full = running.generated == sampling.max_tokens or len(running.tokens) >= self.facts.context_length
        finish = "stop" if running.complete else "length" if full else None
        return Token(running.job, token, self.text(token), finish, cached, logprob, top)

    def _scores(self, running: Running, token: int) -> tuple[float | None, tuple[Scored, ...]]:
        """The token's log-probability, and the likeliest tokens."""
        count = running.sampling.logprobs
        if count is None:
            return None, ()
        import numpy as np

        logits = np.array(running.rows.pop(running.generated))[0]
        logprob_of = log_probabilities(logits)
        top = likeliest(logits, count, logprob_of) if count else []
        return float(logprob_of(float(logits[token]))), tuple(Scored(id, self.text(id), value) for id, value in top)

    def _end(self, ended: list[Running]) -> None:
        for running in ended:
            del self._jobs[running.job]
            if running.uid in self._active:
                del self._active[running.uid]
            else:
                self._waiting.remove(running)
        if ended:
            self._hold = False
        whole = [running.uid for running in ended if running.uid >= 0 and not running.unread]
        for cache, tokens in self._generator.remove(whole, return_prompt_caches=True).values():
            self._keep(Kept(list(tokens), cache, self._clock))
        self._generator.remove([running.uid for running in ended if running.unread])

    # --- slots and the KV cache ---

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.facts.slots and not (self._hold and self._active):
            running = self._waiting[0]
            source, shared = self._find(running.tokens)
            reading = [other.unread for other in self._active.values() if other.unread]
            unread = len(running.tokens) - shared
            if reading and (len(reading) + 1) * max(*reading, unread) > self._chunk:
                return  # short prompts are read together, a long one alone: those who answer wait for one chunk
            if self._active and self._cells_taken(running) > self._cells:
                return
            self._waiting.popleft()
            self._insert(running, source, shared)

    def _insert(self, running: Running, source: "Kept | Running | None", shared: int) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        cache = self._beginning(source, shared) if source else make_prompt_cache(self._model)
        tokens = running.tokens
        sampler, processors = choosing(running, self.facts.vocabulary)
        (running.uid,) = self._generator.insert(
            [tokens[shared:]],
            [self.facts.context_length + 1],  # we say when it ends
            caches=[cache],
            all_tokens=[tokens[:shared]],
            samplers=[sampler],
            logits_processors=[processors],
        )
        running.unread = len(tokens) - shared
        running.cached = shared if running.cached is None else running.cached
        self._active[running.uid] = running

    def _find(self, tokens: list[int]) -> "tuple[Kept | Running | None, int]":
        """Whose KV begins as this prompt does, and how far. The last token is always computed: it gives the logits."""
        best: Kept | Running | None = None
        longest = WORTH_SHARING - 1
        running = [other for other in self._active.values() if not other.unread]
        sources: list[Kept | Running] = [*self._kept, *running]
        for source in sources:
            common = kv.common_prefix(source.tokens, tokens[:-1])
            whole = common == len(source.tokens)
            if common > longest and (whole or len(source.tokens) < self._window):
                best, longest = source, common
        return best, longest if best else 0

    def _beginning(self, source: "Kept | Running", shared: int) -> list[Any]:
        """A copy of a sequence's KV, cut after `shared` tokens."""
        import copy

        from mlx_lm.models.cache import trim_prompt_cache

        if isinstance(source, Kept):
            source.last_used = self._clock
            cache, held = copy.deepcopy(source.cache), len(source.tokens)  # the arrays themselves are shared
        else:
            cache, tokens = self._generator.extract_cache([source.uid])[source.uid]
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
                if len(old.tokens) > len(new.tokens) or kv.common_prefix(old.tokens, new.tokens) < len(old.tokens)
            ]
        self._kept.append(new)

    def _cells_taken(self, *more: Running) -> int:
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
            running = max(self._active.values(), key=lambda other: other.order)
            self._generator.remove([running.uid])
            del self._active[running.uid]
            running.uid, running.unread = -1, 0
            self._waiting.appendleft(running)
            self._hold = True

    # --- constraints and embeddings ---

    def _guide(self, constraint: Constraint) -> Guide:
        if self._guides is None:
            own = self._vocabulary
            if not own.ends:
                raise Refused(
                    "this model has no token that ends an answer, which a constraint needs", "response_format"
                )
            size = self.facts.vocabulary
            self._guides = Guides(own.pieces[:size], [id for id in own.special if id < size], own.ends, own.encode)
        return self._guides.guide(constraint)

    def _hidden_states(self, ids: Sequence[int]) -> "np.ndarray[Any, Any]":
        """Of the last layer, normalised: (tokens, width)."""
        import mlx.core as mx
        import numpy as np
        from mlx_lm.models.cache import make_prompt_cache

        assert self._body
        cache = make_prompt_cache(self._model)
        parts = []
        for start in range(0, len(ids), self._chunk):
            hidden = self._body(mx.array([ids[start : start + self._chunk]]), cache=cache)[0].astype(mx.float32)
            parts.append(np.array(hidden))
        return np.concatenate(parts)


# --- choosing a token ---


def choosing(running: Running, vocabulary: int) -> tuple[Callable[[Any], Any], list[Callable[[Any, Any], Any]]]:
    """A sampler and logits processors for BatchGenerator, which calls the processors first."""
    from mlx_lm.sample_utils import greedy_sampler

    chooser = Chooser(running, vocabulary)
    if chooser.plain:
        return greedy_sampler, []  # the same object for all, so that they are one batched call
    return chooser.choose, [chooser.adjust]


class Chooser:
    """One answer's way of choosing, on the device. The order is the reference implementation's: bias and penalties,
    constraint, temperature, top_k, top_p, min_p. It is asked for one token more than is ever delivered, for the next
    step is begun before this one is looked at; and it must not raise, for that tears the KV of all others. So it holds
    nothing that a job needs to go on after a preemption: randomness comes from seed and position alone."""

    def __init__(self, running: Running, vocabulary: int) -> None:
        import mlx.core as mx

        self._running, s = running, running.sampling
        self._position = running.generated - 1  # of the token being chosen, once adjust was called for it
        self._greedy = s.temperature < GREEDY_BELOW
        self._bias = scatter(vocabulary, s.logit_bias) if s.logit_bias else None
        self._barred = scatter(vocabulary, dict.fromkeys(running.ends, -float("inf"))) if s.min_tokens else None
        self._seen = self._counts = None
        if s.repetition_penalty != 1:
            self._seen = scatter(vocabulary, dict.fromkeys(running.tokens, 1.0)) > 0
        if s.frequency_penalty or s.presence_penalty:
            self._counts = scatter(vocabulary, Counter(running.tokens[running.prompt :]))
            self._counted = running.generated
        self._infinity = mx.array(-float("inf"))
        self._vocabulary = vocabulary
        adjusted = s.logit_bias or s.min_tokens or s.logprobs is not None or running.guide
        self.plain = self._greedy and not adjusted and self._seen is None and self._counts is None

    def adjust(self, context: Any, logits: Any) -> Any:
        """`context`: int32, (prompt and generated tokens,); `logits`: float32, (1, vocabulary)."""
        import mlx.core as mx

        s, self._position = self._running.sampling, self._position + 1
        if s.logprobs is not None:
            self._running.rows[self._position] = logits
        if self._bias is not None:
            logits = logits + self._bias
        if self._seen is not None:
            self._seen[context[-1:]] = True
            punished = mx.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
            logits = mx.where(self._seen, punished, logits)
        if self._counts is not None:
            if self._position > self._counted:
                self._counts = self._counts.at[context[-1:]].add(1.0)
            logits = logits - s.frequency_penalty * self._counts - s.presence_penalty * (self._counts > 0)
        if self._barred is not None and self._position < s.min_tokens:
            logits = logits + self._barred
        return self._constrained(context, logits) if self._running.guide else logits

    def choose(self, logprobs: Any) -> Any:
        """`logprobs`: float32, (1, vocabulary), of what adjust gave. The token's id: (1,)."""
        import mlx.core as mx

        s = self._running.sampling
        if self._greedy:
            return logprobs.argmax(-1)
        values, ids = logprobs[0] / s.temperature, None
        if 0 < s.top_k < self._vocabulary:
            ids = mx.argpartition(-values, s.top_k - 1)[: s.top_k]
            values = values[ids]
        if s.top_p < 1:
            order = mx.argsort(-values)
            values, ids = values[order], order if ids is None else ids[order]
            weights = mx.softmax(values)
            values = mx.where(mx.cumsum(weights) - weights < s.top_p, values, self._infinity)
        if s.min_p > 0:
            values = mx.where(values >= values.max() + math.log(s.min_p), values, self._infinity)
        key = mx.random.key((self._running.seed * ODD + self._position) & (2**64 - 1))
        at = mx.random.categorical(values, key=key)
        return (at if ids is None else ids[at])[None]

    def _constrained(self, context: Any, logits: Any) -> Any:
        import mlx.core as mx
        import numpy as np

        running = self._running
        if running.complete or running.stuck is not None:
            return logits
        assert running.guide
        mask = np.zeros(self._vocabulary, np.float32)
        running.why_stuck = "no token may follow: the constraint leaves none"
        try:
            if self._position > running.accepted:
                running.accepted = self._position
                token = int(context[-1].item())
                running.complete = token in running.ends or running.guide.accept(token)
                if running.complete:
                    return logits
            running.guide.forbid(mask)
        except ConstraintFailed as error:
            mask[:] = -np.inf
            running.why_stuck = str(error)
        if self._position < running.sampling.min_tokens:
            mask[list(running.ends)] = -np.inf
        if not np.isfinite(mask).any():
            running.stuck = self._position
            return logits
        return logits + mx.array(mask)


def scatter(size: int, values: Mapping[int, float]) -> Any:
    """An array of zeros but for these."""
    import mlx.core as mx
    import numpy as np

    row = np.zeros(size, np.float32)
    row[list(values)] = list(values.values())
    return mx.array(row)


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


def check_memory(model: Any, cells: int, kv_bytes: int, free: int) -> None:
    """MLX does not fail where memory ends: the process dies of it."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    limits = [free, int(mx.device_info().get("max_recommended_working_set_size", 0))]
    limit = min((known for known in limits if known), default=0)
    if limit and weights + kv_bytes > 0.9 * limit:
        raise ValueError(
            f"weights of {weights >> 20} MiB and a KV cache of {cells} tokens, {kv_bytes >> 20} MiB, do not fit the "
            f"{limit >> 20} MiB of memory that are free; lower 'context', 'slots' or options.mlx.kv_tokens"
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
    features=EVERYTHING,
    devices=devices,
    distributions=("mlx", "mlx-lm"),
    environment={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
)
