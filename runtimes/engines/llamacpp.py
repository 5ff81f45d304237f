"""llama.cpp: continuous batching over the low-level API of llama-cpp-python, whose exact version is pinned."""

import ctypes
import importlib.util
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from optimize.gguf.text import TextRules, prepare_text
from runtimes import formats, kv
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
    Sampling,
    Scored,
    Token,
    check_tokens,
)
from runtimes.pooling import pooled
from runtimes.sampling import GREEDY_BELOW, likeliest, log_probabilities, scored

if TYPE_CHECKING:
    import numpy as np

TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
FLASH = {"auto": -1, "off": 0, "on": 1}
WARN, ERROR = 3, 4  # ggml's log levels
EXPECTED = "n_ctx_seq ("  # it warns that one sequence could fill the shared cache; the context length is checked before
EMBEDDING_ROWS = 512  # tokens of a text read at a time
LEAST_CELLS = 512  # of the KV cache for scores
SCORED_ROWS = 64  # the same where each gives logits: 37 MiB of them for a vocabulary of 150 000


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options: {llamacpp: {...}}` of a model."""

    n_gpu_layers: int = -1  # layers on the GPU of a GPU build; -1 = all
    kv_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None  # KV cells shared by all slots
    kv_precision: Literal["f16", "f32", "q8_0"] = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256  # prompt tokens read in one step


class Running:
    """A job that was admitted or waits for a slot."""

    def __init__(self, job: int, ids: Sequence[int], sampling: Sampling, order: int) -> None:
        self.job, self.sampling, self.order = job, sampling, order
        self.tokens = list(ids)  # prompt, then what was generated
        self.prompt = len(self.tokens)
        self.chain: Any = None  # sampler; kept when preempted, so that a seed goes on where it was
        self.eos_barred = False
        self.ends: frozenset[int] = frozenset()  # ids that end the answer
        self.guide: Guide | None = None
        self.cached: int | None = None  # prompt tokens reused, of the first admission


class Slot:
    """One llama.cpp sequence. Its KV outlives its job, for the next prompt that begins alike."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.kv: list[int] = []  # the tokens whose keys and values the cache holds
        self.running: Running | None = None
        self.last_used = 0
        self.row = -1  # of the batch, where this step's logits will be


class LlamaCpp:
    def __init__(self, load: Load, report: Callable[[float], None]) -> None:
        import llama_cpp
        import numpy as np

        from optimize.gguf.library import Log, load_backends

        self._l: Any = llama_cpp
        options = msgspec.convert(load.options, Options)
        self._log = Log(show_trouble)
        load_backends()
        self._device = load.device
        self._model = self._load_model(load.path, options, report)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        vocabulary = llama_cpp.llama_vocab_n_tokens(self._vocab)
        context = min(load.context, llama_cpp.llama_model_n_ctx_train(self._model))
        cells = kv.cells(options.kv_tokens, context, load.slots)
        self._check_memory(cells, options.kv_precision, load.free_bytes)
        self._chunk, self._threads = options.prefill_chunk, load.threads
        self._rows = self._chunk + load.slots
        self._options = options
        self._context = self._new_context(cells, load.slots, self._rows)
        # A recurrent state holds the whole text read, and cannot give back a part of it.
        recurrent = llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
        self._reusable = not recurrent
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = Batch(llama_cpp, np, self._rows)
        self._slots = [Slot(i) for i in range(load.slots)]
        self._waiting: deque[Running] = deque()
        self._jobs: dict[int, Running] = {}
        self._hold = (
            False  # after a preemption nobody is admitted until someone ends: else they preempt in turns for ever
        )
        self._order = self._clock = 0
        template = llama_cpp.llama_model_chat_template(self._model, None)
        self._template = template.decode() if template else None
        self._pieces = self._marks(vocabulary)
        self._piece_buffer = ctypes.create_string_buffer(1024)
        self._eos = self._end_tokens(vocabulary)
        self._guides: Guides | None = None
        self._embedding: Any = None  # a context of its own, made when the first text comes
        self._scoring: Any = None  # the same for scores
        rules = self._metadata("enginehouse.text")
        self._text_rules = msgspec.json.decode(rules, type=TextRules) if rules else None
        self.facts = self._facts(context, load.slots, vocabulary)

    # --- the contract ---

    def encode(self, text: str) -> list[int]:
        data = (prepare_text(text, self._text_rules) if self._text_rules else text).encode()
        size = len(data) + 16
        ids = (ctypes.c_int32 * size)()
        # A template that writes BOS itself must not get a second one.
        add_bos = not (self.facts.bos and text.startswith(self.facts.bos))
        count = self._l.llama_tokenize(self._vocab, data, len(data), ids, size, add_bos, True)
        if count < 0:
            raise RuntimeError(f"llama_tokenize wants room for {-count} tokens where {size} were offered")
        return list(ids[:count])

    def add(self, job: int, ids: Sequence[int], sampling: Sampling) -> None:
        check_tokens(ids, sampling, self.facts.vocabulary)
        self._order += 1
        running = Running(job, ids, sampling, self._order)
        running.ends = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self._eos)
        running.guide = self._guide(sampling.constraint) if sampling.constraint else None
        running.chain = self._sampler(running)
        self._jobs[job] = running
        self._waiting.append(running)

    def step(self) -> list[Token]:
        self._admit()
        self._clock += 1
        filled = self._fill()
        if not filled:
            return []
        code = self._l.llama_decode(self._context, self._batch.struct)
        if code == 1:  # no room in the KV cache; nothing was changed
            self._make_room()
            return []
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}: {self._log.reason}")
        out = []
        for slot, count in filled:
            running = slot.running
            assert running
            slot.kv += running.tokens[len(slot.kv) : len(slot.kv) + count]
            if slot.row >= 0:
                out.append(self._next(slot, running))
        return out

    def remove(self, job: int) -> None:
        running = self._jobs.get(job)
        if running:
            self._end(running)

    def embed(self, ids: Sequence[Sequence[int]], pooling: Pooling) -> list[list[float]]:

        if self._embedding is None:
            self._embedding = self._embedding_context()
        return [pooled(self._hidden_states(text), pooling) for text in ids]

    def score(self, ids: Sequence[int], top: int) -> list[Logprob]:
        self._fit_scoring(len(ids))
        read = self._outputs(self._scoring, ids[:-1], SCORED_ROWS, self._l.llama_get_logits, self.facts.vocabulary)
        return [one for start, rows in read for one in scored(rows, ids[start + 1 :][: len(rows)], top, self.text)]

    def close(self) -> None:
        for running in list(self._jobs.values()):
            self._end(running)
        for context in filter(None, (self._embedding, self._scoring, self._context)):
            self._l.llama_free(context)
        self._l.llama_model_free(self._model)

    # --- one step ---

    def _fill(self) -> list[tuple[Slot, int]]:
        """One row for every decoding slot, then chunks of the prompts, oldest job first, up to the chunk size."""
        busy = sorted((s for s in self._slots if s.running), key=lambda s: s.running.order)  # type: ignore[union-attr]
        batch, filled, prompts = self._batch, [], []
        batch.clear()
        for slot in busy:
            assert slot.running
            position = len(slot.kv)
            if len(slot.running.tokens) - position == 1:
                slot.row = batch.add_one(slot.running.tokens[position], position, slot.index)
                filled.append((slot, 1))
            else:
                prompts.append(slot)
        room = self._chunk
        for slot in prompts:
            assert slot.running
            chunk = slot.running.tokens[len(slot.kv) : len(slot.kv) + room]
            if not chunk:
                break
            last = len(slot.kv) + len(chunk) == len(slot.running.tokens)
            row = batch.add_many(chunk, len(slot.kv), slot.index, last)
            slot.row = row if last else -1
            filled.append((slot, len(chunk)))
            room -= len(chunk)
        return filled

    def _next(self, slot: Slot, running: Running) -> Token:
        sampling, cached = running.sampling, running.cached or 0
        score, top = self._scores(slot.row, sampling.logprobs)
        try:
            if running.guide:
                running.guide.forbid(self._logits(slot.row))
            token = self._l.llama_sampler_sample(running.chain, self._context, slot.row)
            complete = running.guide.accept(token) if running.guide and token not in running.ends else False
        except ConstraintFailed as error:
            self._end(running)
            return Token(running.job, -1, b"", failure=str(error))
        if token in running.ends:
            self._end(running)
            return Token(running.job, -1, b"", "stop", cached, score and score(token), top)
        running.tokens.append(token)
        generated = len(running.tokens) - running.prompt
        full = generated == sampling.max_tokens or len(running.tokens) >= self.facts.context_length
        if full or complete:
            self._end(running)
        elif running.eos_barred and generated >= sampling.min_tokens:
            self._l.llama_sampler_free(self._l.llama_sampler_chain_remove(running.chain, 0))
            running.eos_barred = False
        finish = "stop" if complete else "length" if full else None
        return Token(running.job, token, self.text(token), finish, cached, score and score(token), top)

    def _logits(self, row: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """A view of the library's own, before sampling."""
        import numpy as np

        return np.ctypeslib.as_array(self._l.llama_get_logits_ith(self._context, row), (self.facts.vocabulary,))

    def _scores(self, row: int, count: int | None) -> tuple[Callable[[int], float] | None, tuple[Scored, ...]]:
        """What a token's log-probability is, and the likeliest tokens."""
        if count is None:
            return None, ()
        logits = self._logits(row).copy()
        logprob_of = log_probabilities(logits)
        top = likeliest(logits, count, logprob_of) if count else []
        scored = tuple(Scored(token, self.text(token), logprob) for token, logprob in top)
        return lambda token: float(logprob_of(float(logits[token]))), scored

    def _end(self, running: Running) -> None:
        self._l.llama_sampler_free(running.chain)
        del self._jobs[running.job]
        self._hold = False
        for slot in self._slots:
            if slot.running is running:
                slot.running, slot.last_used = None, self._clock
                return
        self._waiting.remove(running)

    # --- slots and the KV cache ---

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
        """The free slot for a prompt, holding as much of its beginning as any slot has, even a busy one."""
        most = len(tokens) - 1 if self._reusable else 0  # the last token is always computed: it gives the logits
        common = {slot.index: min(kv.common_prefix(slot.kv, tokens), most) for slot in self._slots}
        source = max(self._slots, key=lambda s: (common[s.index], s in free))
        # Overwrite what is least worth keeping, unless a free slot already holds the best beginning and little else.
        target = min(free, key=lambda s: (len(s.kv) > 0, s.last_used))
        if source in free and 2 * common[source.index] >= len(source.kv):
            target = source
        keep = common[source.index]
        if target is not source:
            self._forget(target)
            if keep:
                self._l.llama_memory_seq_cp(self._memory, source.index, target.index, 0, keep)
        elif not self._l.llama_memory_seq_rm(self._memory, target.index, keep, -1):
            self._forget(target)  # sliding-window and recurrent caches refuse to lose a part
            keep = 0
        target.kv = tokens[:keep]
        return target

    def _forget(self, slot: Slot) -> None:
        self._l.llama_memory_seq_rm(self._memory, slot.index, -1, -1)
        slot.kv = []

    def _make_room(self) -> None:
        """Drops the idle cache used longest ago, else sends the youngest job back to wait, to be read again."""
        idle = [slot for slot in self._slots if not slot.running and slot.kv]
        if idle:
            self._forget(min(idle, key=lambda s: s.last_used))
            return
        busy = [slot for slot in self._slots if slot.running]
        if len(busy) == 1:
            raise RuntimeError("the KV cache cannot hold one sequence; raise options.llamacpp.kv_tokens")
        slot = max(busy, key=lambda s: s.running.order)  # type: ignore[union-attr]
        assert slot.running
        self._waiting.appendleft(slot.running)
        slot.running = None
        self._forget(slot)
        self._hold = True

    # --- sampling ---

    def _sampler(self, running: Running) -> Any:
        """Bias and penalties, then temperature, top_k, top_p, min_p in the order of the reference implementation."""
        lib, s = self._l, running.sampling
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = lib.llama_sampler_chain_init(params)

        def add(sampler: Any) -> None:
            lib.llama_sampler_chain_add(chain, sampler)

        if s.min_tokens > 0 and running.ends:
            add(self._bias(dict.fromkeys(running.ends, float("-inf"))))
            running.eos_barred = True
        if s.logit_bias:
            add(self._bias(s.logit_bias))
        if s.repetition_penalty != 1:
            penalty = lib.llama_sampler_init_penalties(
                self.facts.vocabulary, self.facts.context_length, s.repetition_penalty, 0.0, 0.0
            )
            for token in running.tokens:
                lib.llama_sampler_accept(penalty, token)
            add(penalty)
        if s.frequency_penalty or s.presence_penalty:
            add(
                lib.llama_sampler_init_penalties(
                    self.facts.vocabulary, self.facts.context_length, 1.0, s.frequency_penalty, s.presence_penalty
                )
            )
        if s.temperature < GREEDY_BELOW:
            add(lib.llama_sampler_init_greedy())
            return chain
        if s.top_k > 0:  # commutes with temperature, and makes all that follows cheap
            add(lib.llama_sampler_init_top_k(min(s.top_k, self.facts.vocabulary)))
        if s.temperature != 1:
            add(lib.llama_sampler_init_temp(s.temperature))
        if s.top_p < 1:
            add(lib.llama_sampler_init_top_p(s.top_p, 1))
        if s.min_p > 0:
            add(lib.llama_sampler_init_min_p(s.min_p, 1))
        seed = random.getrandbits(31) if s.seed is None else s.seed & 0x7FFFFFFF
        add(lib.llama_sampler_init_dist(seed))
        return chain

    def _bias(self, bias: dict[int, float]) -> Any:
        entries = (self._l.llama_logit_bias * len(bias))(*[self._l.llama_logit_bias(t, b) for t, b in bias.items()])
        return self._l.llama_sampler_init_logit_bias(self._l.llama_vocab_n_tokens(self._vocab), len(bias), entries)

    def text(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            size = self._l.llama_token_to_piece(self._vocab, token, self._piece_buffer, 1024, 0, False)
            piece = self._pieces[token] = self._piece_buffer.raw[: max(size, 0)]
        return piece

    def _marks(self, vocabulary: int) -> dict[int, bytes]:
        """Control tokens that mark calls or thoughts, as they are shown."""
        shown = formats.marks(self._template)
        texts = {token: self._token_text(token) for token in range(vocabulary)} if shown else {}
        return {token: text.encode() for token, text in texts.items() if text in shown}

    def _guide(self, constraint: Constraint) -> Guide:
        if self._guides is None:
            lib, vocab = self._l, self._vocab
            size = self.facts.vocabulary
            pieces = [self.text(token) for token in range(size)]
            special = [token for token in range(size) if lib.llama_vocab_is_control(vocab, token) and not pieces[token]]
            self._guides = Guides(pieces, special, sorted(self._eos), self.encode)
        return self._guides.guide(constraint)

    # --- embeddings and scores ---

    def _embedding_context(self) -> Any:
        params = self._l.llama_context_default_params()
        params.n_ctx = self.facts.context_length
        params.n_batch = params.n_ubatch = min(EMBEDDING_ROWS, self.facts.context_length)
        params.n_threads = params.n_threads_batch = self._threads
        params.embeddings = True
        params.pooling_type = self._l.LLAMA_POOLING_TYPE_NONE
        params.no_perf = True
        context = self._l.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"llama.cpp cannot make a context for embeddings: {self._log.reason}")
        return context

    def _hidden_states(self, ids: Sequence[int]) -> "np.ndarray[Any, Any]":
        """Of the last layer, normalised: (tokens, width)."""
        import numpy as np

        width = self._l.llama_model_n_embd(self._model)
        read = self._outputs(self._embedding, ids, EMBEDDING_ROWS, self._l.llama_get_embeddings, width)
        return np.concatenate([rows for _, rows in read])

    def _fit_scoring(self, tokens: int) -> None:
        """Makes its context as large as the longest text so far wanted it: most are short, and it is kept."""
        if self._scoring and self._l.llama_n_ctx(self._scoring) >= tokens:
            return
        if self._scoring:
            self._l.llama_free(self._scoring)
        cells = max(LEAST_CELLS, 1 << (tokens - 1).bit_length())
        self._scoring = self._new_context(min(cells, self.facts.context_length), 1, SCORED_ROWS)

    def _outputs(
        self, context: Any, ids: Sequence[int], rows: int, output: Callable[[Any], Any], width: int
    ) -> "Iterator[tuple[int, np.ndarray[Any, Any]]]":
        """Reads a text into an empty context, so many tokens at a time: where each part begins, and what came out for
        its tokens: (tokens, width)."""
        import numpy as np

        lib, batch = self._l, Batch(self._l, np, rows)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for start in range(0, len(ids), rows):
            chunk = list(ids[start : start + rows])
            batch.clear()
            batch.add_many(chunk, start, 0, False)
            batch.want_all()
            if code := lib.llama_decode(context, batch.struct):
                raise RuntimeError(f"llama_decode returned {code} outside the batch: {self._log.reason}")
            yield start, np.ctypeslib.as_array(output(context), (len(chunk), width)).copy()

    # --- loading ---

    def _load_model(self, path: str, options: Options, report: Callable[[float], None]) -> Any:
        self._l.llama_backend_init()
        params = self._l.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers if self._device == "gpu" else 0

        def progress(fraction: float, _: Any) -> bool:
            report(fraction)
            return True

        self._progress = self._l.llama_progress_callback(progress)  # the library keeps only the pointer
        params.progress_callback = self._progress
        model = self._l.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise ValueError(f"llama.cpp cannot load '{path}': {self._log.reason}")
        return model

    def _check_memory(self, cells: int, precision: str, free: int) -> None:
        """llama.cpp does not ask whether the KV cache fits: the kernel kills the process instead."""
        layers = self._l.llama_model_n_layer(self._model)
        width = self._l.llama_model_n_embd(self._model) // self._l.llama_model_n_head(self._model)
        architecture = self._metadata("general.architecture")
        key = int(self._metadata(f"{architecture}.attention.key_length") or width)
        value = int(self._metadata(f"{architecture}.attention.value_length") or width)
        bytes_each = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}[precision]
        needed = int(cells * layers * self._l.llama_model_n_head_kv(self._model) * (key + value) * bytes_each)
        kv.check_room("llamacpp", cells, needed, free)

    def _new_context(self, cells: int, sequences: int, rows: int) -> Any:
        params = self._l.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = rows
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = True  # every sequence may use every cell, and a prefix is shared without copying
        params.flash_attn_type = FLASH[self._options.flash_attention]
        params.type_k = params.type_v = TYPES[self._options.kv_precision]
        params.no_perf = True
        context = self._l.llama_init_from_model(self._model, params)
        if not context:
            raise ValueError(f"llama.cpp cannot make a context of {cells} tokens: {self._log.reason}")
        return context

    def _end_tokens(self, vocabulary: int) -> frozenset[int]:
        """llama.cpp's own, and those our converter took from generation_config.json: GGUF has room for one."""
        own = (t for t in range(vocabulary) if self._l.llama_vocab_is_eog(self._vocab, t))
        return frozenset([*own, *json.loads(self._metadata("enginehouse.eos_token_ids") or "[]")])

    def _facts(self, context: int, slots: int, vocabulary: int) -> Facts:
        return Facts(
            context_length=context,
            slots=slots,
            vocabulary=vocabulary,
            chat_template=self._template,
            bos=self._token_text(self._l.llama_vocab_bos(self._vocab))
            if self._l.llama_vocab_get_add_bos(self._vocab)
            else "",
            eos=self._token_text(self._l.llama_vocab_eos(self._vocab)),
            device=self._device,
            features=EVERYTHING,
        )

    def _token_text(self, token: int) -> str:
        return "" if token < 0 else str(self._l.llama_vocab_get_text(self._vocab, token).decode())

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(1 << 16)
        size = self._l.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if size >= 0 else ""


class Batch:
    """One llama_batch over our own arrays, so that filling it costs no ctypes call per row."""

    def __init__(self, lib: Any, np: Any, rows: int) -> None:
        self._token = np.zeros(rows, np.int32)
        self._position = np.zeros(rows, np.int32)
        self._sequence = np.zeros(rows, np.int32)
        self._counts = np.ones(rows, np.int32)
        self._logits = np.zeros(rows, np.int8)
        self._pointers = (self._sequence.ctypes.data + 4 * np.arange(rows)).astype(np.uintp)
        self._arange = np.arange(rows, dtype=np.int32)

        def pointer(array: "np.ndarray[Any, Any]", kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        self.struct = lib.llama_batch(
            0,
            pointer(self._token, ctypes.c_int32),
            None,
            pointer(self._position, ctypes.c_int32),
            pointer(self._counts, ctypes.c_int32),
            pointer(self._pointers, ctypes.POINTER(ctypes.c_int32)),
            pointer(self._logits, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.struct.n_tokens = 0

    def want_all(self) -> None:
        """Asks for the output of every row."""
        self._logits[: self.struct.n_tokens] = 1

    def add_one(self, token: int, position: int, sequence: int) -> int:
        """Adds a row whose logits are wanted; its index."""
        row: int = self.struct.n_tokens
        self._token[row], self._position[row], self._sequence[row], self._logits[row] = token, position, sequence, 1
        self.struct.n_tokens = row + 1
        return row

    def add_many(self, tokens: list[int], position: int, sequence: int, last: bool) -> int:
        """Adds rows of a prompt; logits are wanted for the final one if `last`. The index of the final row."""
        row: int = self.struct.n_tokens
        end = row + len(tokens)
        self._token[row:end] = tokens
        self._position[row:end] = self._arange[: len(tokens)] + position
        self._sequence[row:end] = sequence
        self._logits[row:end] = 0
        self._logits[end - 1] = last
        self.struct.n_tokens = end
        return end - 1


def show_trouble(level: int, text: str) -> None:
    """Warnings and errors go on to stderr, and so into the server's log."""
    if level in (WARN, ERROR) and EXPECTED not in text:
        print(text.strip(), file=sys.stderr, flush=True)


def unavailable() -> str | None:
    if importlib.util.find_spec("llama_cpp") is None:
        return "llama-cpp-python is not installed; pip install 'enginehouse[llamacpp]'"
    return None


def devices() -> list[Device]:
    """What ggml's backends found. Written from the documentation for all but the CPU."""
    import llama_cpp

    found = [Device("CPU", "cpu")]
    if llama_cpp.llama_supports_gpu_offload():
        found.append(Device("GPU", "gpu", "the GPU this build of llama.cpp was made for"))
    return found


def load(load: Load, report: Callable[[float], None]) -> Engine:
    return LlamaCpp(load, report)


RUNTIME = Local(
    name="llamacpp",
    format="gguf",
    unavailable=unavailable,
    load=load,
    options=Options,
    features=EVERYTHING,
    devices=devices,
    distributions=("llama-cpp-python",),
    # OpenMP threads that spin for long are five times slower on a busy machine, and those that never do lose a third or
    # more on a quiet one; a short spin is best on both (DECISIONS.md). A failed assertion must not start gdb.
    environment={"GOMP_SPINCOUNT": "1000", "GGML_NO_BACKTRACE": "1"},
)
