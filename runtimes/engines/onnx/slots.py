"""Many sequences on one ONNX Runtime session: our own KV cache under a graph whose attention works in place."""

import json
import math
import mmap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.toolchains.onnx.logits import WANTED
from enginehouse.runtimes.decoding.batching import CacheFull, Chunk

if TYPE_CHECKING:
    import numpy as np

ELEMENTS = {"tensor(float)": "float32", "tensor(float16)": "float16"}
PAST = "past_key_values."


class Graph(msgspec.Struct, frozen=True):
    """What genai_config.json says of a model in ONNX Runtime GenAI's layout."""

    file: str
    layers: int
    heads: int  # of keys and values
    width: int  # of one head
    vocabulary: int
    context: int  # tokens the model was made for
    shared_buffer: bool  # past and present may be the same memory


def read_graph(folder: Path) -> Graph:
    """Raises ValueError where the folder is not of this layout."""
    try:
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        model, decoder = config["model"], config["model"]["decoder"]
        return Graph(
            decoder["filename"],
            decoder["num_hidden_layers"],
            decoder["num_key_value_heads"],
            decoder["head_size"],
            model["vocab_size"],
            model["context_length"],
            config.get("search", {}).get("past_present_share_buffer", False),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{folder}' is no ONNX Runtime GenAI model: {error!r}") from error


class Slots:
    """Each slot holds one sequence and may be copied into another. Row r of every layer's keys and values is a slot's;
    which one changes, so that the rows of a decode are always the first ones."""

    shares = True

    def __init__(self, session: Any, graph: Graph, slots: int, context: int, cells: int) -> None:
        """`context`: tokens of one slot; `cells`: of all together."""
        import numpy as np

        self.session, self._graph = session, graph
        self.slots, self.context, self.cells = slots, context, cells
        inputs = {value.name: value for value in session.get_inputs()}
        self._positions = "position_ids" in inputs
        self._element = np.dtype(ELEMENTS[inputs[f"{PAST}0.key"].type])
        logits = next(value for value in session.get_outputs() if value.name == "logits")
        self._logits_element = np.dtype(ELEMENTS[logits.type])
        self._chooses = WANTED in inputs
        self.last_only = logits.shape[1] == 1  # the graph gives no other place
        self.guesses = 0 if self.last_only else 1  # beside others, a sequence with guesses takes a run of its own
        shape = (slots, graph.heads, context, graph.width)
        self._caches = [Cache(shape, self._element) for _ in range(2 * graph.layers)]
        self._row = list(range(slots))  # of each slot
        self._slot = list(range(slots))  # of each row
        self._length = [0] * slots  # tokens each slot holds
        self._bindings: dict[tuple[int, int, bool], Any] = {}
        self._places = np.arange(-context, 0, dtype=np.int64)
        self._out = np.zeros((slots, 1, graph.vocabulary), self._logits_element)

    def forward(self, chunks: Sequence[Chunk]) -> "list[np.ndarray[Any, Any]]":
        """Logits are float32, (vocabulary,)."""
        if sum(self._length) + sum(len(chunk.tokens) for chunk in chunks) > self.cells:
            raise CacheFull
        answering = list(takewhile(lambda chunk: chunk.rows == len(chunk.tokens) == 1, chunks))
        rows = self._decode(answering) if answering else []
        for chunk in chunks[len(answering) :]:
            logits = self.append(chunk.slot, chunk.tokens, max(1, chunk.rows))
            rows += list(logits[: chunk.rows])
        return rows

    def append(self, slot: int, tokens: Sequence[int], wanted: int) -> "np.ndarray[Any, Any]":
        """To a sequence; the logits after the last `wanted` of them: float32, (wanted, vocabulary)."""
        import numpy as np

        row, past = self._row[slot], self._length[slot]
        ids = np.asarray(tokens, np.int64)[None]
        mask = np.ones((1, past + len(tokens)), np.int64)
        positions = np.arange(past, past + len(tokens), dtype=np.int64)[None]
        logits: np.ndarray[Any, Any] = self._run(row, row + 1, ids, mask, positions, wanted)[0]
        self._length[slot] += len(tokens)
        return logits.astype("float32", copy=False)

    def _decode(self, chunks: Sequence[Chunk]) -> "list[np.ndarray[Any, Any]]":
        """One token for each."""
        import numpy as np

        count, slots = len(chunks), [chunk.slot for chunk in chunks]
        self._gather(slots)
        rows = [self._row[slot] for slot in slots]
        ids, lengths = np.zeros((count, 1), np.int64), np.zeros((count, 1), np.int64)
        ids[rows, 0] = [chunk.tokens[0] for chunk in chunks]
        lengths[rows, 0] = [chunk.start for chunk in chunks]
        mask = (np.arange(int(lengths.max()) + 1)[None] <= lengths).astype(np.int64)
        logits = self._run(0, count, ids, mask, lengths, 1)[:, -1].astype("float32", copy=False)
        for slot in slots:
            self._length[slot] += 1
        return [logits[row] for row in rows]

    def reusable(self, slot: int, length: int) -> bool:
        return True

    def truncate(self, slot: int, length: int, expected: int) -> int:
        """Keeps the memory of `expected` tokens."""
        if max(length, expected) < self._length[slot]:
            for cache in self._caches:
                cache.release(self._row[slot], max(length, expected), self._length[slot])
        self._length[slot] = length
        return length

    def copy(self, source: int, target: int, length: int) -> int:
        """Nothing where that would leave no room to go on."""
        if sum(self._length) + length >= self.cells:
            return 0
        for cache in self._caches:
            cache.rows[self._row[target], :, :length] = cache.rows[self._row[source], :, :length]
        self._length[target] = length
        return length

    def save(self, slot: int) -> memoryview:
        row, length = self._row[slot], self._length[slot]
        return memoryview(b"".join(cache.rows[row, :, :length].tobytes() for cache in self._caches))

    def restore(self, slot: int, length: int, state: memoryview) -> bool:
        import numpy as np

        shape = (len(self._caches), self._graph.heads, length, self._graph.width)
        if sum(self._length) + length >= self.cells or len(state) != math.prod(shape) * self._element.itemsize:
            return False
        for cache, values in zip(self._caches, np.frombuffer(state, self._element).reshape(shape), strict=True):
            cache.rows[self._row[slot], :, :length] = values
        self._length[slot] = length
        return True

    def close(self) -> None:
        self._bindings.clear()
        self._caches.clear()

    def _gather(self, slots: Sequence[int]) -> None:
        """Moves these slots into the first rows."""
        wanted = set(slots)
        for row in range(len(slots)):
            if self._slot[row] not in wanted:
                self._exchange(row, next(r for r in range(len(slots), self.slots) if self._slot[r] in wanted))

    def _exchange(self, one: int, other: int) -> None:
        lengths = self._length[self._slot[one]], self._length[self._slot[other]]
        for cache in self._caches:
            cache.exchange(one, other, *lengths)
        self._slot[one], self._slot[other] = self._slot[other], self._slot[one]
        self._row[self._slot[one]], self._row[self._slot[other]] = one, other

    def _run(self, low: int, high: int, ids: Any, mask: Any, positions: Any, wanted: int) -> Any:
        """The logits of these rows at the last places: (rows, wanted, vocabulary); good until the next run."""
        bound = wanted == 1 and (self._chooses or self.last_only)
        binding = self._binding(low, high, bound)
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        if self._positions:
            binding.bind_cpu_input("position_ids", positions)
        if self._chooses:
            binding.bind_cpu_input(WANTED, self._places[-wanted:])
        if not bound:
            binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        # A binding lists its outputs in the order of binding.
        return self._out[low:high] if bound else binding.get_outputs()[-1].numpy()[:, -wanted:]

    def _binding(self, low: int, high: int, bound: bool) -> Any:
        """Everything that does not change between runs over these rows is bound once. `bound`: their logits, too."""
        if (low, high, bound) in self._bindings:
            return self._bindings[low, high, bound]
        binding = self.session.io_binding()
        if bound:
            out = self._out[low:high]
            binding.bind_output("logits", "cpu", 0, self._logits_element.type, out.shape, out.ctypes.data)
        for number, cache in enumerate(self._caches):
            layer, kind = number // 2, ("key", "value")[number % 2]
            rows = cache.rows[low:high]
            memory = "cpu", 0, self._element.type, rows.shape, rows.ctypes.data
            binding.bind_input(f"{PAST}{layer}.{kind}", *memory)
            binding.bind_output(f"present.{layer}.{kind}", *memory)
        self._bindings[low, high, bound] = binding
        return binding


class Cache:
    """Keys, or values, of one layer: (slots, heads, context, width). The system gives it memory page by page as tokens
    come, and gets it back when they are forgotten, so that 8 slots of 8192 tokens cost what their tokens cost."""

    def __init__(self, shape: tuple[int, int, int, int], element: Any) -> None:
        import numpy as np

        self._bytes_per_token = shape[3] * element.itemsize
        self._bytes_per_head = shape[2] * self._bytes_per_token
        self._heads = shape[1]
        size = shape[0] * shape[1] * self._bytes_per_head
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._memory = mmap.mmap(-1, size, **private)
        self._advises = hasattr(self._memory, "madvise")
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page is thousands of tokens of one head
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.rows = np.frombuffer(self._memory, element).reshape(shape)

    def release(self, row: int, start: int, end: int) -> None:
        """Gives the whole pages of these tokens back."""
        if not self._advises:
            return
        for head in range(self._heads):
            base = (row * self._heads + head) * self._bytes_per_head
            first = -(-(base + start * self._bytes_per_token) // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (base + end * self._bytes_per_token) // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)

    def exchange(self, one: int, other: int, one_length: int, other_length: int) -> None:
        kept = self.rows[one, :, :one_length].copy()
        self.rows[one, :, :other_length] = self.rows[other, :, :other_length]
        self.rows[other, :, :one_length] = kept
        self.release(one, other_length, one_length)
        self.release(other, one_length, other_length)


def slots_refusal(session: Any, graph: Graph) -> str | None:
    """Why sequences cannot share this graph, or None."""
    known = {"input_ids", "attention_mask", "position_ids", WANTED}
    cache = {f"{PAST}{layer}.{kind}" for layer in range(graph.layers) for kind in ("key", "value")}
    inputs = {value.name: value for value in session.get_inputs()}
    if foreign := sorted(set(inputs) - known - cache):
        return f"its graph wants '{foreign[0]}'"
    if missing := sorted((cache | {"input_ids", "attention_mask"}) - set(inputs)):
        return f"its graph has no '{missing[0]}'"
    if not graph.shared_buffer:
        return "its attention does not work in place"
    for name in cache:
        if inputs[name].type not in ELEMENTS:
            return f"its KV cache is {inputs[name].type}"
        if isinstance(inputs[name].shape[2], int):
            return "it keeps a window of the text only"
    return None
