"""llama.cpp: continuous batching over the low-level API of llama-cpp-python, whose exact version is pinned."""

import ctypes
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from enginehouse.optimize.toolchains.gguf.text import TextRules, prepare_text
from enginehouse.runtimes.contract import (
    EVERYTHING,
    HALF_THE_THREADS,
    Device,
    Engine,
    Facts,
    Load,
    Local,
    Logprob,
    Pieces,
    Pooling,
    Sampling,
    Setting,
)
from enginehouse.runtimes.decoding import kv_cache
from enginehouse.runtimes.decoding.batching import STRETCH, BatchedEngine, CacheFull, Chunk
from enginehouse.runtimes.decoding.kv_disk import kv_disk_of
from enginehouse.runtimes.decoding.pooling import pooled
from enginehouse.runtimes.decoding.sampling import scored
from enginehouse.runtimes.decoding.special_tokens import parts
from enginehouse.runtimes.engines.llamacpp import kv_layout
from enginehouse.runtimes.engines.llamacpp.batch import Batch
from enginehouse.runtimes.engines.llamacpp.sampling import Chain
from enginehouse.runtimes.grammar.matcher import GrammarCompiler, Matcher
from enginehouse.runtimes.tool_calls import parsers

if TYPE_CHECKING:
    import numpy as np

TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
FLASH = {"auto": -1, "off": 0, "on": 1}
WARN, ERROR = 3, 4  # ggml's log levels
EXPECTED = "n_ctx_seq ("  # it warns that one sequence could fill the shared cache; the context length is checked before
EMBEDDING_ROWS = 256  # tokens of a text read at a time, between two steps
SPECIAL_TOKENS = 256  # in a text tokenized at once: llama.cpp's time grows with the square of their number
DENIED_SECONDS = 5.0  # after more memory was not to be had, before it is asked for again
LEAST_CELLS = 512  # of the KV cache for scores
READ_APART = 128  # tokens; rows of others among 64 or more, which a CPU's attention takes by tiles, look at all cells
SCORED_ROWS = 64  # the same where each gives logits: 37 MiB of them for a vocabulary of 150 000


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options: {llamacpp: {...}}` of a model."""

    n_gpu_layers: int = -1  # layers on the GPU of a GPU build; -1 = all
    kv_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None  # KV cells shared by all slots
    kv_precision: Literal["f16", "f32", "q8_0"] = "f16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256  # prompt tokens read in one step
    prefill_stretch: Annotated[float, msgspec.Meta(ge=1)] = STRETCH  # of a lone answer's step
    speculation: Literal["lookup", "off"] = "lookup"  # guesses of what follows, from the text itself


class LlamaCpp:
    def __init__(self, load: Load, report: Callable[[float], None]) -> None:
        import llama_cpp
        import numpy as np

        from enginehouse.optimize.toolchains.gguf.library import Log, load_backends

        self.lib: Any = llama_cpp
        options = msgspec.convert(load.options, Options)
        self._log = Log(show_trouble)
        load_backends()
        self._device = load.device
        self._model = self._load_model(load.path, options, report)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        vocabulary = llama_cpp.llama_vocab_n_tokens(self._vocab)
        own, token_bytes = llama_cpp.llama_model_n_ctx_train(self._model), self._token_bytes(options.kv_precision)
        context = kv_cache.context_of(load, own, options.kv_tokens, token_bytes)
        cells = kv_cache.cells(options.kv_tokens, context, load.slots)
        least = options.kv_tokens or context  # the rest is asked for as it is used
        kv_cache.check_room("llamacpp", least, least * token_bytes, load.free_bytes)
        self._threads, rows = load.threads, options.prefill_chunk + load.slots
        self._options, self._rows = options, rows
        self._most_cells = options.kv_tokens or max(cells, min(context * load.slots, kv_cache.room(load, token_bytes)))
        recurrent = llama_cpp.llama_model_is_recurrent(self._model) or llama_cpp.llama_model_is_hybrid(self._model)
        self.shares: bool = not recurrent
        self.guesses = 0 if recurrent or options.speculation == "off" else load.slots
        self.apart = READ_APART if load.device == "cpu" and options.flash_attention != "off" else 0
        self._window: int = max(1, llama_cpp.llama_model_n_swa(self._model))  # tokens that must be known to go on
        self.forgets: bool = recurrent or self._window > 1
        self.saves = True
        self._denied_until = 0.0
        self._separable = load.slots > 1 and not self.forgets and not options.kv_tokens
        asked = kv_layout.Layout(options.kv_tokens, own=False) if options.kv_tokens else None
        self._layout = asked or kv_layout.first(load.slots, cells, self._separable)  # grows as it is used
        self.context = self._new_context(self._layout, load.slots, rows)
        self._memory = llama_cpp.llama_get_memory(self.context)
        self._batch = Batch(llama_cpp, np, rows)
        template = llama_cpp.llama_model_chat_template(self._model, None)
        self._template = template.decode() if template else None
        self._pieces = self._marks(vocabulary)
        self._piece_buffer = ctypes.create_string_buffer(1024)
        self.ends: Sequence[int] = self._end_tokens(vocabulary)
        self._embedding: Any = None  # a context of its own, made when the first text comes
        self._scoring: Any = None  # the same for scores
        rules = self._metadata("enginehouse.text")
        self._text_rules = msgspec.json.decode(rules, type=TextRules) if rules else None
        self.facts = self._facts(context, load.slots, vocabulary, int(token_bytes))
        lib = llama_cpp
        self._closes_text = bool(lib.llama_vocab_get_add_eos(self._vocab) or lib.llama_vocab_get_add_sep(self._vocab))

    # --- the contract ---

    def encode(self, text: str) -> list[int]:
        prepared = prepare_text(text, self._text_rules) if self._text_rules else text
        # A template that writes BOS itself must not get a second one.
        add_bos = not (self.facts.bos and text.startswith(self.facts.bos))
        if self._closes_text:
            return self._tokenize(prepared, add_bos)
        first, *rest = parts(prepared, self.facts.special_tokens, SPECIAL_TOKENS)
        ids = self._tokenize(first, add_bos)
        for part in rest:
            ids += self._tokenize(part, False)
        return ids

    def _tokenize(self, text: str, add_bos: bool) -> list[int]:
        data = text.encode()
        size = len(data) + 16
        ids = (ctypes.c_int32 * size)()
        count = self.lib.llama_tokenize(self._vocab, data, len(data), ids, size, add_bos, True)
        if count < 0:
            raise RuntimeError(f"llama_tokenize wants room for {-count} tokens where {size} were offered")
        return list(ids[:count])

    def sampler(self, sampling: Sampling, prompt: Sequence[int], ends: Sequence[int], matcher: Matcher | None) -> Chain:
        return Chain(self, sampling, prompt, ends, matcher)

    def forward(self, chunks: Sequence[Chunk]) -> list[int]:
        """The rows of the batch where the logits are."""
        self._batch.clear()
        rows = dict[int, range]()
        for chunk in sorted(chunks, key=lambda chunk: chunk.slot):  # those with cells of their own are batched in order
            rows[chunk.slot] = self._batch.add(chunk.tokens, chunk.start, chunk.slot, chunk.rows)
        code = self.lib.llama_decode(self.context, self._batch.struct)
        while code == 1:  # no room in the KV cache; nothing was changed
            if not self._grow({chunk.slot: chunk.start + len(chunk.tokens) for chunk in chunks}):
                raise CacheFull
            code = self.lib.llama_decode(self.context, self._batch.struct)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}: {self._log.reason}")
        return [row for chunk in chunks for row in rows[chunk.slot]]

    def _lengths(self, wanted: dict[int, int]) -> list[int]:
        """Of all sequences, where some are to have so many tokens."""
        held = (1 + self.lib.llama_memory_seq_pos_max(self._memory, slot) for slot in range(self.facts.slots))
        return [wanted.get(slot, length) for slot, length in enumerate(held)]

    def _grow(self, wanted: dict[int, int]) -> bool:
        """Moves every sequence into a larger KV cache, in which some are to have so many tokens; False where none can
        be had."""
        if time.monotonic() < self._denied_until:
            return False
        lengths = self._lengths(wanted)
        for larger in kv_layout.larger(self._layout, lengths, self._rows, self._most_cells, self._separable):
            try:
                kv_cache.check_growth("llamacpp", larger.cells, larger.cells * self.facts.token_bytes)
                return self._move(larger)
            except ValueError as error:
                print(f"the KV cache stays as it is: {error}", file=sys.stderr, flush=True)
                self._denied_until = time.monotonic() + DENIED_SECONDS
        return False

    def _move(self, layout: kv_layout.Layout) -> bool:
        lib = self.lib
        context = self._new_context(layout, self.facts.slots, self._rows)
        for slot in range(self.facts.slots):
            if lib.llama_memory_seq_pos_max(self._memory, slot) < 0:
                continue
            if not self._take(context, layout, slot, self._state(slot)):
                lib.llama_free(context)
                return False
        lib.llama_free(self.context)
        self.context, self._memory, self._layout = context, lib.llama_get_memory(context), layout
        return True

    def reusable(self, slot: int, length: int) -> bool:
        oldest: int = self.lib.llama_memory_seq_pos_min(self._memory, slot)  # position that all layers still know
        return oldest <= max(0, length - self._window)

    def truncate(self, slot: int, length: int, expected: int) -> int:
        if self.lib.llama_memory_seq_rm(self._memory, slot, length, -1):
            return length
        self.lib.llama_memory_seq_rm(self._memory, slot, -1, -1)  # some caches refuse to lose a part
        return 0

    def copy(self, source: int, target: int, length: int) -> int:
        if self._layout.own:  # llama.cpp copies all of it then
            self.lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self.lib.llama_memory_seq_rm(self._memory, target, length, -1)
        else:
            self.lib.llama_memory_seq_cp(self._memory, source, target, 0, length)
        return length

    def _state(self, slot: int) -> memoryview:
        size = self.lib.llama_state_seq_get_size(self.context, slot)
        state: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        self.lib.llama_state_seq_get_data(self.context, state, size, slot)
        given = memoryview(state).cast("B")
        return kv_layout.of_pool(given, slot, self.facts.slots) if self._layout.own else given

    def _take(self, context: Any, form: kv_layout.Layout, slot: int, state: memoryview) -> bool:
        if form.own:
            given = kv_layout.of_own(state, slot, self.facts.slots)
        else:
            given = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(self.lib.llama_state_seq_set_data(context, given, len(given), slot))

    def save(self, slot: int) -> memoryview:
        return self._state(slot)

    def restore(self, slot: int, length: int, state: memoryview) -> bool:
        while not self._take(self.context, self._layout, slot, state):
            if self._layout.fits(self._lengths({slot: length})) or not self._grow({slot: length}):
                return False
        return True

    def keep(self, slot: int) -> memoryview:
        """The recurrent state and what is in the window: not the KV of layers that see everything."""
        part = self.lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        size = self.lib.llama_state_seq_get_size_ext(self.context, slot, part)
        state: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        self.lib.llama_state_seq_get_data_ext(self.context, state, size, slot, part)
        return memoryview(state).cast("B")

    def go_back(self, slot: int, length: int, state: memoryview) -> None:
        part = self.lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        given = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        taken = self.lib.llama_state_seq_set_data_ext(self.context, given, len(given), slot, part)
        if not taken or not self.lib.llama_memory_seq_rm(self._memory, slot, length, -1):
            raise RuntimeError(f"llama.cpp does not take back a state that it gave: {self._log.reason}")

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        import numpy as np

        self._fit_embedding(len(ids))
        width, hidden = self.lib.llama_model_n_embd(self._model), []
        for _, rows in self._outputs(self._embedding, ids, EMBEDDING_ROWS, self.lib.llama_get_embeddings, width):
            hidden.append(rows)
            yield
        return pooled(np.concatenate(hidden), pooling)

    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]:
        self._fit_scoring(len(ids))
        out, logits = list[Logprob](), self.lib.llama_get_logits
        for start, rows in self._outputs(self._scoring, ids[:-1], SCORED_ROWS, logits, self.facts.vocabulary):
            out += scored(rows, ids[start + 1 :][: len(rows)], top, self.text)
            yield
        return out

    def close(self) -> None:
        for context in filter(None, (self._embedding, self._scoring, self.context)):
            self.lib.llama_free(context)
        self.lib.llama_model_free(self._model)

    # --- tokens ---

    def logits(self, row: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """A view of the library's own, before sampling."""
        import numpy as np

        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, row), (self.facts.vocabulary,))

    def text(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            size = self.lib.llama_token_to_piece(self._vocab, token, self._piece_buffer, 1024, 0, False)
            piece = self._pieces[token] = self._piece_buffer.raw[: max(size, 0)]
        return piece

    def _marks(self, vocabulary: int) -> dict[int, bytes]:
        """Control tokens that mark calls or thoughts, as they are shown."""
        shown = parsers.marks(self._template)
        texts = {token: self._token_text(token) for token in range(vocabulary)} if shown else {}
        return {token: text.encode() for token, text in texts.items() if text in shown}

    def grammar_compiler(self) -> GrammarCompiler:
        pieces = [self.text(token) for token in range(self.facts.vocabulary)]
        control = [self.lib.llama_vocab_is_control(self._vocab, token) for token in range(len(pieces))]
        special = [token for token, piece in enumerate(pieces) if control[token] and not piece]
        return GrammarCompiler(pieces, special, self.ends, self.encode)

    # --- embeddings and scores ---

    def _fit_embedding(self, tokens: int) -> None:
        """Makes its context as large as the longest text so far wanted it: most are short, and it is kept."""
        if cells := self._too_small(self._embedding, tokens):
            self._embedding = self._embedding_context(cells)

    def _fit_scoring(self, tokens: int) -> None:
        if cells := self._too_small(self._scoring, tokens):
            self._scoring = self._new_context(kv_layout.Layout(cells, own=False), 1, SCORED_ROWS)

    def _too_small(self, context: Any, tokens: int) -> int:
        """The size of the context to be made instead of this one, which is freed then; 0 where it will do."""
        if context and self.lib.llama_n_ctx(context) >= tokens:
            return 0
        if context:
            self.lib.llama_free(context)
        return min(max(LEAST_CELLS, 1 << (tokens - 1).bit_length()), self.facts.context_length)

    def _embedding_context(self, cells: int) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = min(EMBEDDING_ROWS, cells)
        params.n_threads = params.n_threads_batch = self._threads
        params.embeddings = True
        params.pooling_type = self.lib.LLAMA_POOLING_TYPE_NONE
        params.no_perf = True
        context = self.lib.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError(f"llama.cpp cannot make a context for embeddings: {self._log.reason}")
        return context

    def _outputs(
        self, context: Any, ids: Sequence[int], rows: int, output: Callable[[Any], Any], width: int
    ) -> "Iterator[tuple[int, np.ndarray[Any, Any]]]":
        """Reads a text into an empty context, so many tokens at a time: where each part begins, and what came out for
        its tokens: (tokens, width)."""
        import numpy as np

        lib, batch = self.lib, Batch(self.lib, np, rows)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        for start in range(0, len(ids), rows):
            chunk = list(ids[start : start + rows])
            batch.clear()
            batch.add(chunk, start, 0, len(chunk))
            if code := lib.llama_decode(context, batch.struct):
                raise RuntimeError(f"llama_decode returned {code} outside the batch: {self._log.reason}")
            yield start, np.ctypeslib.as_array(output(context), (len(chunk), width)).copy()

    # --- loading ---

    def _load_model(self, path: str, options: Options, report: Callable[[float], None]) -> Any:
        self.lib.llama_backend_init()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers if self._device == "gpu" else 0

        def progress(fraction: float, _: Any) -> bool:
            report(fraction)
            return True

        self._progress = self.lib.llama_progress_callback(progress)  # the library keeps only the pointer
        params.progress_callback = self._progress
        model = self.lib.llama_model_load_from_file(path.encode(), params)
        if not model:
            raise ValueError(f"llama.cpp cannot load '{path}': {self._log.reason}")
        return model

    def _token_bytes(self, precision: str) -> float:
        """Of the KV cache, for a token."""
        layers = self.lib.llama_model_n_layer(self._model)
        heads = max(1, self.lib.llama_model_n_head(self._model))  # a recurrent model may have none
        width = self.lib.llama_model_n_embd(self._model) // heads
        architecture = self._metadata("general.architecture")
        key = int(self._metadata(f"{architecture}.attention.key_length") or width)
        value = int(self._metadata(f"{architecture}.attention.value_length") or width)
        bytes_each = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}[precision]
        return float(layers * self.lib.llama_model_n_head_kv(self._model) * (key + value) * bytes_each)

    def _new_context(self, form: kv_layout.Layout, sequences: int, rows: int) -> Any:
        params = self.lib.llama_context_default_params()
        params.n_ctx = form.cells
        params.n_batch = params.n_ubatch = rows
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = not form.own
        params.swa_full = False  # layers with a window hold no more than it
        params.flash_attn_type = FLASH[self._options.flash_attention]
        params.type_k = params.type_v = TYPES[self._options.kv_precision]
        params.no_perf = True
        context = self.lib.llama_init_from_model(self._model, params)
        if not context:
            raise ValueError(f"llama.cpp cannot make a context of {form.cells} tokens: {self._log.reason}")
        return context

    def _end_tokens(self, vocabulary: int) -> list[int]:
        """llama.cpp's own, and those our converter took from generation_config.json: GGUF has room for one."""
        own = (t for t in range(vocabulary) if self.lib.llama_vocab_is_eog(self._vocab, t))
        return sorted({*own, *json.loads(self._metadata("enginehouse.eos_token_ids") or "[]")})

    def _facts(self, context: int, slots: int, vocabulary: int, token_bytes: int) -> Facts:
        lib, texts = self.lib, [self._token_text(token) for token in range(vocabulary)]
        parsed = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        special = [token for token in range(vocabulary) if lib.llama_vocab_get_attr(self._vocab, token) & parsed]
        return Facts(
            context_length=context,
            slots=slots,
            vocabulary=vocabulary,
            chat_template=self._template,
            bos=self._token_text(self.lib.llama_vocab_bos(self._vocab))
            if self.lib.llama_vocab_get_add_bos(self._vocab)
            else "",
            eos=self._token_text(self.lib.llama_vocab_eos(self._vocab)),
            device=self._device,
            features=tuple(name for name in EVERYTHING if name != "prediction" or self.guesses),
            # What stands for a blank or a byte in these texts is no shorter than that.
            longest_token=max(len(text.encode()) for text in texts),
            special_tokens=tuple(texts[token] for token in special if texts[token]),
            token_bytes=token_bytes,
            kv_tokens=self._most_cells,
        )

    def _token_text(self, token: int) -> str:
        return "" if token < 0 else str(self.lib.llama_vocab_get_text(self._vocab, token).decode())

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(1 << 16)
        size = self.lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if size >= 0 else ""


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
    options = msgspec.convert(load.options, Options)
    return BatchedEngine(LlamaCpp(load, report), options.prefill_chunk, options.prefill_stretch, kv_disk_of(load))


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
    settings=(HALF_THE_THREADS, Setting("threads that spin for long", environment={"GOMP_SPINCOUNT": "20000"})),
)
