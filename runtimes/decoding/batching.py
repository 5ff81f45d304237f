"""Continuous batching for engines that give the arithmetic alone: slots, chunked prefill, prefix reuse, preemption."""

import itertools
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from enginehouse.optimize.memory import free_memory
from enginehouse.runtimes.contract import Facts, Logprob, Pieces, Pooling, Priority, Sampling, Token
from enginehouse.runtimes.decoding import kv_cache
from enginehouse.runtimes.decoding.jobs import Jobs, Running
from enginehouse.runtimes.decoding.kv_disk import KvDisk, Saved
from enginehouse.runtimes.decoding.prefill_budget import PrefillBudget
from enginehouse.runtimes.decoding.priorities import Riders, may_begin
from enginehouse.runtimes.decoding.sampling import Choice
from enginehouse.runtimes.decoding.speculation import Guesser, StepCost
from enginehouse.runtimes.errors import ConstraintFailed
from enginehouse.runtimes.grammar.matcher import GrammarCompiler, Matcher

R = TypeVar("R")  # what a model gives for one place: logits, or where they lie
C = TypeVar("C", contravariant=True)  # the same, taken


STRETCH = 3.0  # times that a step of one answer alone takes, which one that reads a prompt may take
OLDEST_SHARE = 4  # one step of so many reads the oldest job's prompt first

# Of a sequence that cannot be cut where one likes (a recurrent state, a sliding window) the state is kept at some
# lengths: the next turn of a chat parts from this one where the answer began, or just before.
KEEP_BEFORE_END = 16  # tokens of the prompt: templates end it with the beginning of an answer, not always the same
KEEP_EVERY = 4096  # tokens
KEEP_MOST = 8  # of one sequence
KEPT_BYTES = 1 << 30  # of all
WORTH_SAVING = 512  # tokens that the disk must spare


class CacheFull(Exception):
    """The KV cache has no room for this step; nothing was changed."""


class Chunk(msgspec.Struct, frozen=True):
    """Tokens that a sequence goes on with."""

    slot: int
    start: int  # tokens that it holds already
    tokens: list[int]
    rows: int  # the logits after the last so many of them are wanted


class Sampler(Protocol[C]):
    """One answer's way of choosing."""

    def choose(self, row: C) -> Choice:
        """Raises ConstraintFailed where nothing may follow."""

    def accept(self, token: int) -> bool:
        """Notes a token of the answer; True when a constraint admits nothing more."""

    def close(self) -> None: ...


class Model(Protocol[R]):
    """A model with numbered sequences in its KV cache: what an engine file supplies."""

    facts: Facts
    ends: Sequence[int]  # ids that end an answer
    shares: bool  # a sequence, a busy one too, can be copied into another
    saves: bool  # sequences can be saved and restored
    forgets: bool  # there are lengths that a sequence can go back to only by what was kept of it then
    apart: int  # tokens of prompts from which a step that only reads them is cheaper than beside answers; 0: never
    guesses: int  # sequences of a step whose next tokens may be guessed: what is wrong is taken back by `truncate`

    def encode(self, text: str) -> list[int]: ...
    def text(self, token: int) -> bytes: ...
    def grammar_compiler(self) -> GrammarCompiler: ...
    def sampler(
        self, sampling: Sampling, prompt: Sequence[int], ends: Sequence[int], matcher: Matcher | None
    ) -> Sampler[R]:
        """`ends`: barred until min_tokens."""

    def forward(self, chunks: Sequence[Chunk]) -> Sequence[R]:
        """Appends to these sequences, of which those that answer come first, with one token and its guesses each. The
        rows that are wanted of each, in their order. Raises CacheFull."""

    def reusable(self, slot: int, length: int) -> bool:
        """Whether the first `length` tokens of a sequence still are all that it takes to go on from there: a recurrent
        state is that of its last token, and a sliding window moves on."""

    def truncate(self, slot: int, length: int, expected: int) -> int:
        """Forgets what follows the first `length` tokens; how many are left. `expected`: it will soon hold so many."""

    def copy(self, source: int, target: int, length: int) -> int:
        """Makes an empty sequence begin as another does; how many tokens it holds then."""

    def keep(self, slot: int) -> memoryview:
        """What it takes to go back to where a sequence is now. Only where the model `forgets`."""

    def go_back(self, slot: int, length: int, state: memoryview) -> None:
        """To that length, at which `state` was kept."""

    def save(self, slot: int) -> memoryview:
        """All of a sequence, for a process to come. Only where the model `saves`."""

    def restore(self, slot: int, length: int, state: memoryview) -> bool:
        """Into an empty sequence; False where there is no room, or it was saved by another kind of cache."""

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]: ...
    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]: ...
    def close(self) -> None: ...


class Kept(msgspec.Struct, frozen=True):
    length: int  # tokens that the sequence held
    state: memoryview


def unread(slot: "Slot[R]", running: Running[Sampler[R]]) -> int:
    return len(running.tokens) - len(slot.kv)


class Slot(Generic[R]):
    """One sequence. Its KV outlives its job, for the next prompt that begins alike."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.kv: list[int] = []  # the tokens whose keys and values the cache holds
        self.kept: list[Kept] = []  # shortest first
        self.saved = 0  # tokens of it that are on the disk
        self.running: Running[Sampler[R]] | None = None
        self.last_used = 0
        self.batch = False  # it was a batch job's

    @property
    def worth(self) -> tuple[bool, int]:
        """Of its KV, where it is idle: a chat goes on more often than a batch job's prompt comes again."""
        return not self.batch, self.last_used


def least_worth(free: list[Slot[R]]) -> Slot[R]:
    return min(free, key=lambda slot: (len(slot.kv) > 0, slot.worth))


def put(disk: KvDisk, tokens: list[int], saved: Saved) -> None:
    try:
        disk.put(tokens, saved)
    except OSError as error:
        print(f"the KV of {len(tokens)} tokens is not kept on the disk: {error}", file=sys.stderr, flush=True)


class BatchedEngine(Generic[R]):
    """An engine over a model: admits, plans a step, runs it, chooses."""

    def __init__(
        self, model: Model[R], prefill_chunk: int, prefill_stretch: float = STRETCH, disk: KvDisk | None = None
    ) -> None:
        self._disk = disk if model.saves else None
        self._saving: threading.Thread | None = None
        self._model, self._budget = model, PrefillBudget(prefill_chunk, prefill_stretch, model.apart)
        self._riders = Riders(self._budget.answers)
        self.facts = model.facts
        self.encode, self.text, self.embed, self.score = model.encode, model.text, model.embed, model.score
        self._jobs = Jobs(model.facts, model.text, model.grammar_compiler, self._sampler)
        self.make_ready = self._jobs.make_ready
        self._slots = [Slot[R](index) for index in range(self.facts.slots)]
        self._clock = 0
        self._cost = StepCost()
        self._guessers: dict[int, Guesser] = {}  # by job
        self._most_rows = prefill_chunk  # of a step, beside one of each sequence
        self._read = 0  # steps that read

    def add(self, job: int, ids: Sequence[int], sampling: Sampling, priority: Priority = "interactive") -> None:
        self._jobs.add(job, ids, sampling, () if sampling.ignore_eos else self._model.ends, priority)
        if self._model.guesses:
            self._guessers[job] = Guesser(self.encode(sampling.prediction) if sampling.prediction else [])

    def step(self) -> list[Token]:
        self._admit()
        self._clock += 1
        guess = True
        while any(chunks := self._plan(guess)):
            answering, reading = chunks
            began = time.perf_counter()
            try:
                rows = self._model.forward(answering + reading)
            except CacheFull:
                if all(chunk.rows <= 1 for chunk in answering) and (failed := self._make_room()):
                    return [failed]
                guess = False
                continue
            tokens = self._advance(answering + reading, iter(rows))
            self._note(answering, sum(len(chunk.tokens) for chunk in reading), time.perf_counter() - began)
            return tokens
        return []

    def read(self, job: int) -> tuple[int, int] | None:
        held = next((slot.kv for slot, running in self._busy() if running.job == job), None)
        return None if held is None else (len(held), self._jobs.all[job].cached or 0)

    def remove(self, job: int) -> None:
        if running := self._jobs.all.get(job):
            self._end(running)

    def rest(self) -> bool:
        """Saves a sequence that is not on the disk yet; writing it down is a thread's."""
        if self._disk is None:
            return False
        if self._saving and self._saving.is_alive():
            return True
        left = [slot for slot in self._slots if slot.saved != len(slot.kv) >= WORTH_SAVING and not slot.running]
        if not left:
            return False
        slot = max(left, key=lambda slot: slot.last_used)
        slot.saved = len(slot.kv)
        if 2 * len(slot.kv) * self.facts.token_bytes > free_memory():
            return True  # its copy would push others out
        kept = [(kept.length, kept.state) for kept in slot.kept]
        saved = Saved(self._model.save(slot.index), kept)
        self._saving = threading.Thread(target=put, args=(self._disk, slot.kv[:], saved), daemon=True)
        self._saving.start()
        return True

    def close(self) -> None:
        for job in list(self._jobs.all):
            self.remove(job)
        self._jobs.close()
        self._model.close()

    # --- one step ---

    def _plan(self, guess: bool) -> tuple[list[Chunk], list[Chunk]]:
        """A token and guesses for all who answer, unless the budget has this step for prompts alone, and as much of
        these as it allows: of the one with the least left first, but in some steps of the oldest job, which would wait
        for ever where short ones keep coming."""
        busy = sorted(self._busy(), key=lambda pair: pair[1].order)
        answerers, readers = self._riders.step(
            [pair for pair in busy if unread(*pair) == 1], [pair for pair in busy if unread(*pair) > 1]
        )
        budget = self._budget.reading(len(answerers), [unread(*pair) for pair in readers])
        answering = [] if budget.apart and readers else self._answers(answerers, guess)
        guessed = sum(chunk.rows - 1 for chunk in answering)
        reading, room = list[Chunk](), min(budget.tokens, self._most_rows - guessed)
        oldest = readers[:1] if self._read % OLDEST_SHARE == OLDEST_SHARE - 1 else []
        for slot, running in [*oldest, *sorted(readers[len(oldest) :], key=lambda pair: unread(*pair))]:
            start = len(slot.kv)
            end = min([start + room, *self._to_keep(running, start + 1)])
            if tokens := running.tokens[start:end]:
                reading.append(Chunk(slot.index, start, tokens, int(end >= len(running.tokens))))
                room -= len(tokens)
        return answering, reading

    def _note(self, answering: list[Chunk], read: int, seconds: float) -> None:
        rows = sum(chunk.rows for chunk in answering)
        if not read:
            self._cost.note(rows, seconds)
        if guessed := rows - len(answering):
            seconds -= min(seconds / 2, guessed * self._cost.row_seconds)  # the first where that is not known
        self._budget.note(len(answering), read, seconds)
        self._read += read > 0

    def _answers(self, answering: list[tuple[Slot[R], Running[Sampler[R]]]], guess: bool) -> list[Chunk]:
        chunks, room = [], self._most_rows
        cost = self._cost.of_row(len(answering)) if guess and len(answering) <= self._model.guesses else math.inf
        for slot, running in answering:
            tokens = running.tokens[-1:]
            if cost < 1 or math.isnan(cost):
                left = self._jobs.left(running) - 1
                tokens += self._guessers[running.job].guess(running.tokens, min(left, room // 2), cost)
            chunks.append(Chunk(slot.index, len(slot.kv), tokens, len(tokens)))
            room -= len(tokens) - 1
        return chunks

    def _advance(self, chunks: list[Chunk], rows: Iterator[R]) -> list[Token]:
        tokens = []
        for chunk in chunks:
            slot = self._slots[chunk.slot]
            slot.kv += chunk.tokens
            assert slot.running
            if len(slot.kv) in self._to_keep(slot.running, len(slot.kv)):
                self._keep(slot)
            if chunk.rows:
                tokens += self._say(slot, slot.running, chunk, [next(rows) for _ in range(chunk.rows)])
        return tokens

    def _say(self, slot: Slot[R], running: Running[Sampler[R]], chunk: Chunk, rows: list[R]) -> list[Token]:
        """The next token, and those after it that were guessed right."""
        guesses = chunk.tokens[1:] if len(rows) > 1 else []
        said = [self._next(running, rows[0])]
        for row, guess in zip(rows[1:], guesses, strict=True):
            if said[-1].id != guess or said[-1].finish:
                break
            said.append(self._next(running, row))
        if not guesses:
            return said
        right, guesser = len(said) - 1, self._guessers.get(running.job)
        self._truncate(slot, chunk.start + 1 + right, len(slot.kv))
        if guesser:  # else the answer has ended
            guesser.learn(len(guesses), right)
        said[:-1] = [msgspec.structs.replace(token, guessed=True) for token in said[:-1]]
        said[-1] = msgspec.structs.replace(said[-1], wrong=len(guesses) - right)
        return said

    def _next(self, running: Running[Sampler[R]], row: R) -> Token:
        sampler = running.state
        try:
            choice = sampler.choose(row)
            complete = choice.token not in running.ends and sampler.accept(choice.token)
        except ConstraintFailed as error:
            self._end(running)
            return running.failed(str(error))
        token = self._jobs.token(running, choice, complete)
        if token.finish:
            self._end(running)
        return token

    def _end(self, running: Running[Sampler[R]]) -> None:
        self._jobs.end(running)
        self._jobs.hold = False
        self._guessers.pop(running.job, None)
        running.state.close()
        for slot in self._slots:
            if slot.running is running:
                slot.running, slot.last_used = None, self._clock

    def _sampler(self, running: Running[Sampler[R]]) -> Sampler[R]:
        """Kept when its job is sent back, so that a seed goes on where it was."""
        sampling = running.sampling
        matcher = self._jobs.matcher(sampling.constraint) if sampling.constraint else None
        return self._model.sampler(sampling, running.tokens, sorted(running.ends), matcher)

    # --- slots and the KV cache ---

    def _busy(self) -> list[tuple[Slot[R], Running[Sampler[R]]]]:
        return [(slot, slot.running) for slot in self._slots if slot.running]

    def _admit(self) -> None:
        while self._jobs.waiting:
            free = [slot for slot in self._slots if not slot.running]
            active = [running for _, running in self._busy()]
            if not may_begin(self._jobs.waiting[0], active, self._jobs) and not self._make_way(free):
                return
            running = self._jobs.waiting.pop(0)
            if running.batch:  # what a chat left is for its next turn
                free = [slot for slot in free if slot.batch or not slot.kv] or free
            slot, tier = self._place(running.tokens, free)
            slot.running, slot.batch = running, running.batch
            running.note_slot(len(slot.kv), tier)

    def _make_way(self, free: list[Slot[R]]) -> bool:
        """Where an interactive job waits, the youngest batch job waits in its place: that slot is free then, too."""
        batch = [(slot, running) for slot, running in self._busy() if running.batch]
        if self._jobs.waiting[0].batch or not batch:
            return False
        slot, running = max(batch, key=lambda pair: pair[1].order)
        self._jobs.wait(running)
        slot.running, slot.last_used = None, self._clock
        free.append(slot)
        return True

    def _place(self, tokens: list[int], free: list[Slot[R]]) -> tuple[Slot[R], str]:
        """The free slot for a prompt, holding as much of its beginning as any slot has that can give it; and whence."""
        givers = self._slots if self._model.shares else free
        common = {slot.index: self._common(slot, tokens) for slot in givers}
        if restored := self._from_disk(tokens, free, max(length for length, _ in common.values())):
            common[restored.index] = self._common(restored, tokens)
        source = max(givers, key=lambda slot: (common[slot.index][0], slot in free))
        keep, kept = common[source.index]
        tier = "disk" if source is restored else "memory" if kept else "slot"
        if kept:
            self._go_back(source, kept)
            return source, tier
        # Overwrite what is least worth keeping, unless a free slot already holds the best beginning and little else.
        target = least_worth(free)
        if keep and source in free and (not self._model.shares or 2 * keep >= len(source.kv)):
            target = source
        self._truncate(target, keep if target is source else 0, len(tokens))
        if keep and target is not source:
            target.kv = tokens[: self._model.copy(source.index, target.index, keep)]
            tier = "memory"
        return target, tier

    def _from_disk(self, tokens: list[int], free: list[Slot[R]], there: int) -> Slot[R] | None:
        """A free slot with what the disk has of a prompt's beginning, where that is much more than is `there`."""
        if self._disk is None:
            return None
        length, file = self._disk.best(tokens[:-1], self._model.forgets)
        taken = self._disk.take(file) if file and length >= WORTH_SAVING + there else None
        if taken is None:
            return None
        (held, saved), target = taken, least_worth(free)
        self._truncate(target, 0)
        if not self._model.restore(target.index, len(held), saved.state):
            return None
        target.kv, target.saved, target.last_used = held, len(held), self._clock
        target.kept = [Kept(length, state) for length, state in saved.kept]
        return target

    def _common(self, slot: Slot[R], tokens: list[int]) -> tuple[int, Kept | None]:
        """How many tokens of a prompt the slot can give, and what it takes to go back there. The last one is always
        computed: it gives the logits."""
        length = min(kv_cache.common_prefix(slot.kv, tokens), len(tokens) - 1)
        if length and self._model.reusable(slot.index, length):
            return length, None
        kept = [kept for kept in slot.kept if kept.length <= length and not slot.running]
        return (kept[-1].length, kept[-1]) if kept else (0, None)

    def _truncate(self, slot: Slot[R], length: int, expected: int = 0) -> None:
        if length < len(slot.kv):
            slot.kv = slot.kv[: self._model.truncate(slot.index, length, expected)]
            self._drop_longer(slot)

    # --- what is kept of sequences that forget ---

    def _to_keep(self, running: Running[Sampler[R]], least: int) -> list[int]:
        """The next lengths, from this one on, at which the state of the prompt is to be kept."""
        if not self._model.forgets:
            return []
        lengths = running.prompt - KEEP_BEFORE_END, -(-least // KEEP_EVERY) * KEEP_EVERY
        return [length for length in lengths if least <= length <= lengths[0]]

    def _keep(self, slot: Slot[R]) -> None:
        slot.kept.append(Kept(len(slot.kv), self._model.keep(slot.index)))
        if len(slot.kept) > KEEP_MOST:  # of two that are close to each other the shorter one is worth the least
            lengths = [kept.length for kept in slot.kept]
            gaps = [after - before for before, after in itertools.pairwise(lengths)]
            del slot.kept[gaps.index(min(gaps))]
        for oldest in sorted(self._slots, key=lambda slot: (slot.running is not None, slot.last_used)):
            while oldest.kept and sum(len(kept.state) for slot in self._slots for kept in slot.kept) > KEPT_BYTES:
                del oldest.kept[0]

    def _go_back(self, slot: Slot[R], kept: Kept) -> None:
        self._model.go_back(slot.index, kept.length, kept.state)
        slot.kv = slot.kv[: kept.length]
        self._drop_longer(slot)

    def _drop_longer(self, slot: Slot[R]) -> None:
        slot.saved = 0
        slot.kept = [kept for kept in slot.kept if kept.length <= len(slot.kv)]

    def _make_room(self) -> Token | None:
        """Drops the idle KV used longest ago, else sends the youngest job back to wait, to be read again. One that is
        alone has failed."""
        if idle := [slot for slot in self._slots if not slot.running and slot.kv]:
            self._truncate(min(idle, key=lambda slot: slot.worth), 0)
            return None
        busy = self._busy()
        slot, running = max(busy, key=lambda pair: pair[1].rank)
        if len(busy) == 1:
            self._end(running)
            tokens = len(running.tokens)
            return running.failed(f"there is no room for the KV of {tokens} tokens; raise memory_budget or kv_tokens")
        self._jobs.send_back(running)
        slot.running = None
        self._truncate(slot, 0)
        return None
