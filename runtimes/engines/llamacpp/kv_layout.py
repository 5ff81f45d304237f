"""Where llama.cpp keeps the KV of its sequences: each in cells of its own, or all of them in one pool of cells.

In a pool a row looks at everybody's cells to find its own, so a crowd is a third slower there. Cells of its own are as
many for each sequence as the longest wants, so a single long one among many slots would take the memory of as many.
"""

import ctypes
from collections.abc import Iterator, Sequence

import msgspec

FIRST_CELLS = 4096  # of all sequences together
OWN_CELLS = 16384  # that sequences may take together, however few of them are used
PADDED = 256  # llama.cpp rounds a sequence's own cells up to it
HEAD = 8  # bytes at the beginning of a state
COUNT = 4  # bytes of a number of cells, or of sequences, in it


class Layout(msgspec.Struct, frozen=True):
    cells: int  # of all sequences
    own: bool

    def fits(self, lengths: Sequence[int]) -> bool:
        return max(lengths) * len(lengths) <= self.cells if self.own else sum(lengths) <= self.cells


def first(slots: int, most: int, separable: bool) -> Layout:
    """`most`: cells; `separable`: the model's cache can be either."""
    own = slots * padded(FIRST_CELLS // slots)
    return Layout(own, True) if separable and own <= min(most, OWN_CELLS) else Layout(min(most, FIRST_CELLS), False)


def larger(now: Layout, lengths: Sequence[int], rows: int, most: int, separable: bool) -> Iterator[Layout]:
    """For sequences that are to have so many tokens each, the best first. `rows`: of a step."""
    slots, held = len(lengths), sum(lengths)
    each = max(2 * now.cells // slots if now.own else 0, max(lengths) * 5 // 4)
    own = Layout(slots * padded(each), True)
    if separable and own.cells <= min(most, max(OWN_CELLS, 2 * held)):
        yield own
    pool = Layout(min(max(now.cells if now.own else 2 * now.cells, held + rows), most), False)
    grown = now.own or pool.cells > now.cells
    if grown and held <= pool.cells:
        yield pool


def padded(cells: int) -> int:
    return -(-cells // PADDED) * PADDED


def of_pool(state: memoryview, slot: int, slots: int) -> memoryview:
    """The state of a sequence that had cells of its own, as one of a pool would give it; `state` is overwritten.

    The first is (head, slots, nothing for each before it, its cells, nothing for each after it), the other
    (head, 1, its cells)."""
    head = bytes(state[:HEAD])
    pooled = state[COUNT * slot : len(state) - COUNT * (slots - 1 - slot)]
    pooled[:HEAD], pooled[HEAD : HEAD + COUNT] = head, number(1)
    return pooled


def of_own(state: memoryview, slot: int, slots: int) -> "ctypes.Array[ctypes.c_uint8]":
    """The other way."""
    own = (ctypes.c_uint8 * (len(state) + COUNT * (slots - 1)))()
    view, cells = memoryview(own).cast("B"), state[HEAD + COUNT :]
    begin = HEAD + COUNT * (1 + slot)
    view[:HEAD], view[HEAD : HEAD + COUNT] = state[:HEAD], number(slots)
    view[begin : begin + len(cells)] = cells
    return own


def number(value: int) -> bytes:
    return value.to_bytes(COUNT, "little")
