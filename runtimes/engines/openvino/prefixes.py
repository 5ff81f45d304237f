"""What the KV cache of OpenVINO GenAI's pipeline holds, followed from outside: it does not say."""

from collections import OrderedDict
from collections.abc import Sequence


class Prefixes:
    """Which beginnings of texts the pipeline's KV cache holds, in its own pages; it does not tell how many tokens of
    a prompt it reused. Exact while everything fits; when it drops pages, the longest unused ones, nearly so."""

    def __init__(self, block: int, capacity: int) -> None:
        self._block, self.capacity = block, capacity
        self._pages: OrderedDict[int, None] = OrderedDict()  # hash of all tokens to the end of a page

    def reuse(self, tokens: Sequence[int]) -> int:
        """How many of these it has. As block_manager.hpp looks it up: whole pages, then the shortest begun one, which
        is taken away, for it is written on; one token is always computed."""
        if not self.capacity:
            return 0
        count, before = 0, 0
        for start in range(0, len(tokens), self._block):
            page = tokens[start : start + self._block]
            whole = key(before, page)
            if len(page) == self._block and whole in self._pages:
                self._pages.move_to_end(whole)
                before, count = whole, count + len(page)
                continue
            sizes = [len(page), *range(1, len(page))]
            begun = next((size for size in sizes if key(before, page[:size]) in self._pages), 0)
            self._pages.pop(key(before, page[:begun]), None)
            count += begun
            break
        return min(count, len(tokens) - 1)

    def keep(self, tokens: Sequence[int]) -> None:
        before = 0
        for start in range(0, len(tokens), self._block):
            before = key(before, tokens[start : start + self._block])
            self._pages[before] = None
            self._pages.move_to_end(before)
        while len(self._pages) > self.capacity:
            self._pages.popitem(last=False)


def key(before: int, page: Sequence[int]) -> int:
    return hash((before, *page))
