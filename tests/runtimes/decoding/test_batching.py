"""The scheduler over a model that is arithmetic alone: whatever comes, goes and is sent back, each job's answer is what
it would be by itself."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.runtimes.contract import JSON_OBJECT, Facts, Logprob, Pieces, Pooling, Sampling, Token
from enginehouse.runtimes.decoding import batching
from enginehouse.runtimes.decoding.batching import BatchedEngine, CacheFull, Chunk
from enginehouse.runtimes.decoding.kv_disk import KvDisk
from enginehouse.runtimes.decoding.sampling import Choice, Sampler
from enginehouse.runtimes.decoding.speculation import NGRAM, Lookup, StepCost
from enginehouse.runtimes.errors import ConstraintFailed, Refused
from enginehouse.runtimes.grammar.matcher import GrammarCompiler, Matcher

VOCABULARY, CONTEXT, END = 23, 40, 22
STATES, WINDOW = 997, 6
LOGITS = np.random.default_rng(0).normal(0, 2, (STATES, VOCABULARY)).astype(np.float32)
Kind = Literal["shared", "copied", "alone", "recurrent", "window"]
KINDS: tuple[Kind, ...] = ("shared", "copied", "alone", "recurrent", "window")


class Cell:
    """What the cache holds of one token: the state that it and all before it make."""

    def __init__(self, token: int, state: int) -> None:
        self.token, self.state = token, state


class Toy:
    """A model whose next token depends on all before it and where they stand, or, if it `loops`, on the last one: then
    it says the same again and again. `kind`: what its cache can do.

    shared: sequences own the cells of a common beginning together; copied: each has its own; alone: none can be copied
    into another; recurrent: alone, and nothing can be forgotten but everything; window: shared, and a step overwrites
    cells of others that no window reaches."""

    def __init__(
        self,
        kind: Kind = "shared",
        slots: int = 3,
        cells: int = 4 * CONTEXT,
        prefill_chunk: int = 8,
        loops: bool = False,
        guesses: int = 0,
        apart: int = 0,
    ) -> None:
        self.kind, self.cells, self.prefill_chunk, self.loops = kind, cells, prefill_chunk, loops
        self.guesses, self.apart = 0 if kind == "recurrent" else guesses, apart
        self.shares = kind not in ("alone", "recurrent")
        self.forgets = kind in ("recurrent", "window")
        self.saves = True
        self.ends: Sequence[int] = (END,)
        self.facts = Facts(CONTEXT, slots, VOCABULARY, None, "", "", "cpu", ())
        self.sequences: list[list[Cell]] = [[] for _ in range(slots)]
        self.oldest = [0] * slots  # position that the layers with a window still know
        self.samplers = 0  # open ones
        self.steps: list[list[Chunk]] = []
        self.most = 0  # cells that were ever taken

    def taken(self) -> int:
        if self.kind == "copied":
            return sum(map(len, self.sequences))
        return len({id(cell) for sequence in self.sequences for cell in sequence})

    def forward(self, chunks: Sequence[Chunk]) -> list[Any]:
        answering = list(takewhile(lambda chunk: chunk.rows == len(chunk.tokens), chunks))
        assert sum(len(chunk.tokens) for chunk in chunks) <= self.prefill_chunk + len(answering)
        assert all(chunk.rows <= 1 for chunk in answering) or len(answering) <= self.guesses
        assert len({chunk.slot for chunk in chunks}) == len(chunks) > 0
        if self.taken() + sum(len(chunk.tokens) for chunk in chunks) > self.cells:
            raise CacheFull
        if self.kind == "window":
            self.oldest = [max(0, len(sequence) - WINDOW) for sequence in self.sequences]
        rows = []
        for chunk in chunks:
            sequence = self.sequences[chunk.slot]
            assert chunk.tokens
            assert chunk.start == len(sequence)
            for token in chunk.tokens:
                before = 0 if self.loops else 31 * (sequence[-1].state if sequence else 0) + len(sequence)
                sequence.append(Cell(token, (before + 7 * token + 1) % STATES))
            rows += [LOGITS[cell.state].copy() for cell in sequence[len(sequence) - chunk.rows :]]
        self.steps.append(list(chunks))
        self.most = max(self.most, self.taken())
        return rows

    def reusable(self, slot: int, length: int) -> bool:
        assert 0 < length <= len(self.sequences[slot])
        if self.kind == "recurrent":
            return length == len(self.sequences[slot])
        return self.oldest[slot] <= max(0, length - WINDOW)

    def truncate(self, slot: int, length: int, expected: int) -> int:
        assert length < len(self.sequences[slot])
        assert not length or self.reusable(slot, length)
        del self.sequences[slot][length:]
        self.oldest[slot] = 0 if not length else self.oldest[slot]
        return length

    def copy(self, source: int, target: int, length: int) -> int:
        assert self.shares
        assert self.reusable(source, length)
        assert not self.sequences[target]
        if self.kind == "copied" and self.taken() + length >= self.cells:
            return 0
        self.sequences[target] = self.sequences[source][:length]
        self.oldest[target] = self.oldest[source]
        self.most = max(self.most, self.taken())
        return length

    def keep(self, slot: int) -> memoryview:
        assert self.forgets
        return self.save(slot)

    def go_back(self, slot: int, length: int, state: memoryview) -> None:
        before = [cell.token for cell in self.sequences[slot][:length]]
        self.sequences[slot] = []
        assert self.restore(slot, length, state)
        assert [cell.token for cell in self.sequences[slot]] == before

    def save(self, slot: int) -> memoryview:
        return memoryview(np.array([(cell.token, cell.state) for cell in self.sequences[slot]], np.int32).tobytes())

    def restore(self, slot: int, length: int, state: memoryview) -> bool:
        assert not self.sequences[slot]
        if self.taken() + length > self.cells:
            return False
        cells = np.frombuffer(state, np.int32).reshape(length, 2).tolist()
        self.sequences[slot] = [Cell(token, state) for token, state in cells]
        self.oldest[slot] = max(0, length - WINDOW) if self.kind == "window" else 0
        return True

    def sampler(
        self, sampling: Sampling, prompt: Sequence[int], ends: Sequence[int], matcher: Matcher | None
    ) -> "ToySampler":
        self.samplers += 1
        return ToySampler(self, sampling, prompt, ends)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text]

    def text(self, token: int) -> bytes:
        return bytes([97 + token])

    def grammar_compiler(self) -> GrammarCompiler:
        raise Refused("no grammars here")

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        raise NotImplementedError

    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]:
        raise NotImplementedError

    def close(self) -> None:
        assert self.samplers == 0


STUCK = 13.0  # a bias: it stands for a constraint that can be followed no further once this token comes


class ToySampler:
    """The one of the engines that leave it to us, closed once."""

    def __init__(self, model: Toy, sampling: Sampling, prompt: Sequence[int], ends: Sequence[int]) -> None:
        self._model, self._sampler, self._open = model, Sampler(sampling, prompt, ends), True
        self._stuck = {token for token, bias in sampling.logit_bias.items() if bias == STUCK}

    def choose(self, row: Any) -> Choice:
        return self._sampler.choose(row)

    def accept(self, token: int) -> bool:
        if token in self._stuck:
            raise ConstraintFailed("stuck")
        return self._sampler.accept(token)

    def close(self) -> None:
        assert self._open
        self._open = False
        self._model.samplers -= 1


class Watched:
    """An engine that is stepped to the end, with what came out, by job."""

    def __init__(self, model: Toy, disk: KvDisk | None = None) -> None:
        self.model, self.engine = model, BatchedEngine(model, model.prefill_chunk, disk=disk)
        self.prompts: dict[int, list[int]] = {}
        self.samplings: dict[int, Sampling] = {}
        self.tokens: dict[int, list[Token]] = {}
        self.removed: set[int] = set()

    def add(self, job: int, ids: list[int], sampling: Sampling, batch: bool = False) -> None:
        self.engine.add(job, ids, sampling, "batch" if batch else "interactive")
        self.prompts[job], self.samplings[job], self.tokens[job] = ids, sampling, []

    def open(self) -> list[int]:
        over = {job for job, tokens in self.tokens.items() if tokens and (tokens[-1].finish or tokens[-1].failure)}
        return [job for job in self.tokens if job not in over | self.removed]

    def step(self) -> list[Token]:
        running = self.open()
        tokens = self.engine.step()
        assert self.model.guesses or len({token.job for token in tokens}) == len(tokens)
        for token in tokens:
            assert token.job in running
            self.tokens[token.job].append(token)
        assert self.model.taken() <= self.model.cells
        return tokens

    def remove(self, job: int) -> None:
        self.engine.remove(job)
        if job in self.tokens:
            self.removed.add(job)

    def finish(self, most: int = 20_000) -> None:
        while self.open():
            self.step()
            most -= 1
            assert most, "somebody waits for ever"
        steps = len(self.model.steps)
        assert self.engine.step() == []
        assert len(self.model.steps) == steps
        assert self.model.samplers == 0


@pytest.fixture(autouse=True)
def keep_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are short here."""
    for name, value in {"KEEP_BEFORE_END": 2, "KEEP_EVERY": 5, "KEEP_MOST": 3, "KEPT_BYTES": 8 * 60}.items():
        monkeypatch.setattr(batching, name, value)


def alone(ids: list[int], sampling: Sampling, loops: bool = False) -> list[Token]:
    watched = Watched(Toy(slots=1, cells=CONTEXT, prefill_chunk=CONTEXT, loops=loops))
    watched.add(0, ids, sampling)
    watched.finish()
    return watched.tokens[0]


def shown(tokens: list[Token]) -> list[tuple[Any, ...]]:
    return [(t.id, t.text, t.finish, t.logprob, t.top, t.failure) for t in tokens]


def generated(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens if token.id >= 0]


def in_common(a: list[int], b: list[int]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


GREEDY = Sampling(max_tokens=12, temperature=0, ignore_eos=True)
ids = st.integers(0, VOCABULARY - 2)
samplings = st.builds(
    Sampling,
    max_tokens=st.one_of(st.none(), st.integers(1, 25)),
    min_tokens=st.integers(0, 6),
    ignore_eos=st.booleans(),
    temperature=st.sampled_from([0.0, 0.8, 2.0]),
    top_k=st.sampled_from([0, 5]),
    seed=st.integers(0, 2**40),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    stop_token_ids=st.sampled_from([(), (3,), (3, 4, 5)]),
    logprobs=st.sampled_from([None, None, 0, 3]),
    logit_bias=st.sampled_from([{}, {}, {}, {7: STUCK}]),
)
# A prompt is a part of one of three texts, or of what an earlier job has said and been asked, and some tokens more.
prompts = st.tuples(st.integers(0, 8), st.integers(0, CONTEXT), st.lists(ids, min_size=1, max_size=9))
events = st.one_of(
    st.tuples(st.just("add"), prompts, samplings, st.booleans()),
    st.tuples(st.just("add"), prompts, samplings, st.booleans()),
    st.tuples(st.just("step"), st.integers(1, 12)),
    st.tuples(st.just("remove"), st.integers(0, 12)),
)
TEXTS = [[(3 * i + j * i * i + 5 * j + 2) % END for i in range(CONTEXT)] for j in range(3)]


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    slots=st.integers(1, 5),
    spare=st.integers(0, 2 * CONTEXT),
    prefill_chunk=st.integers(1, 20),
    loops=st.booleans(),
    guesses=st.integers(0, 3),
    apart=st.sampled_from([0, 4, 16]),
    workload=st.lists(events, max_size=25),
)
def test_whatever_comes_and_goes_each_answer_is_what_it_is_alone(
    kind: Kind,
    slots: int,
    spare: int,
    prefill_chunk: int,
    loops: bool,
    guesses: int,
    apart: int,
    workload: list[tuple[Any, ...]],
) -> None:
    watched = Watched(Toy(kind, slots, CONTEXT + spare, prefill_chunk, loops, guesses, apart))
    for what, *rest in workload:
        if what == "step":
            for _ in range(rest[0]):
                watched.step()
        elif what == "remove":
            watched.remove(rest[0])
        else:
            (origin, length, own), sampling, batch = rest
            said = [watched.prompts[job] + generated(tokens) for job, tokens in watched.tokens.items()]
            begin = [*TEXTS, *said][origin % (len(said) + 3)][:length]
            job = len(watched.prompts)
            watched.add(job, (begin + own)[: CONTEXT - 1], sampling, batch)
    watched.finish()
    assert watched.model.most <= CONTEXT + spare
    texts = {job: watched.prompts[job] + generated(tokens) for job, tokens in watched.tokens.items()}
    for job, tokens in watched.tokens.items():
        prompt = watched.prompts[job]
        expected = shown(alone(prompt, watched.samplings[job], loops))
        assert shown(tokens) == (expected[: len(tokens)] if job in watched.removed else expected)
        if tokens:
            shared = max((in_common(prompt, text) for other, text in texts.items() if other != job), default=0)
            assert tokens[0].cached <= min(shared, len(prompt) - 1)
            assert {token.cached for token in tokens} == {tokens[0].cached}
    watched.engine.close()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "recurrent"])
def test_what_a_text_repeats_is_said_in_fewer_steps(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCost, "of_row", lambda self, rows: 0.2 * rows)
    watched, sampling = Watched(Toy(kind, prefill_chunk=32, loops=True, guesses=3)), Sampling(temperature=0)
    watched.add(0, [1], sampling)
    watched.finish()
    tokens = watched.tokens[0]
    assert shown(tokens) == shown(alone([1], sampling, loops=True))
    guessed = sum(token.guessed for token in tokens)
    assert guessed == len(tokens) - len(watched.model.steps) > len(tokens) // 2


def test_guesses_that_are_wrong_are_soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCost, "of_row", lambda self, rows: 0.2 * rows)
    monkeypatch.setattr(Lookup, "place", lambda self, tokens: NGRAM)  # what followed is another thing each time
    watched = Watched(Toy(prefill_chunk=32, guesses=3))
    watched.add(0, [1, 2, 3, 4], GREEDY)
    watched.add(1, [5, 2, 3, 4], Sampling(temperature=0, ignore_eos=True))
    watched.finish()
    said = watched.tokens[1]
    wrong = [sum(token.wrong for token in part) for part in (said[:18], said[18:])]
    assert 0 < wrong[0] < 12 and wrong[1] <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_those_who_answer_wait_for_no_more_than_a_chunk_of_a_long_prompt(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "KEEP_BEFORE_END", CONTEXT)  # nothing is kept: that cuts chunks shorter
    watched = Watched(Toy(kind, prefill_chunk=4))
    watched.add(0, [1, 2], GREEDY)
    watched.step()
    watched.add(1, TEXTS[0][:13], GREEDY)
    watched.add(2, TEXTS[1][:6], GREEDY)
    said = [[token.job for token in watched.step()] for _ in range(6)]
    assert said == [[0], [0], [0, 2], [0, 2], [0, 2], [0, 2, 1]]  # the shorter one first
    chunks = [[len(chunk.tokens) for chunk in step] for step in watched.model.steps[1:7]]
    assert chunks == [[1], [1, 4], [1, 2, 2], [1, 1, 4], [1, 1, 4], [1, 1, 3]]


def test_a_long_prompt_is_read_to_its_end_while_short_ones_keep_coming() -> None:
    watched = Watched(Toy(prefill_chunk=4))
    watched.add(0, TEXTS[0][:30], GREEDY)
    for job in range(1, 60):
        if watched.tokens[0]:
            return
        watched.add(job, [job % END] * 8, Sampling(max_tokens=1, temperature=0))
        watched.step()
        watched.step()
    raise AssertionError("the long one was never begun")


def test_jobs_beyond_the_slots_wait_for_their_turn_in_order() -> None:
    watched = Watched(Toy(slots=2))
    for job in range(5):
        watched.add(job, [job + 1], Sampling(max_tokens=3 + job, temperature=0, ignore_eos=True))
    began: list[int] = []
    while watched.open():
        began += [token.job for token in watched.step() if len(watched.tokens[token.job]) == 1]
    assert began == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "again", "continued", "parted", "beside"),
    [
        ("shared", 19, 26, 15, 19),
        ("copied", 19, 26, 15, 19),
        ("alone", 19, 26, 15, 0),  # nothing can be had of a sequence that is busy
        ("recurrent", 18, 26, 10, 0),  # all that was read, or what was kept on the way: at 5, 10 and 18 tokens
        ("window", 18, 26, 10, 0),  # its beginning is out of sight
    ],
)
def test_as_much_of_a_prompt_is_reused_as_the_cache_allows(
    kind: Kind, again: int, continued: int, parted: int, beside: int
) -> None:
    def cached(prompt: list[int], busy: bool = False) -> int:
        watched = Watched(Toy(kind))
        watched.add(0, TEXTS[0][:20], Sampling(max_tokens=7, temperature=0, ignore_eos=True))
        while len(watched.tokens[0]) < 6 if busy else watched.open():
            watched.step()
        watched.add(1, prompt or TEXTS[0][:20] + generated(watched.tokens[0]), GREEDY)
        watched.finish()
        return watched.tokens[1][0].cached

    assert cached(TEXTS[0][:20]) == again
    assert cached([]) == continued
    assert cached([*TEXTS[0][:15], 1, 1, 1]) == parted
    assert cached(TEXTS[0][:20], busy=True) == beside


def test_a_chat_finds_its_last_turn_in_its_slot_however_many_batch_jobs_came_between() -> None:
    watched = Watched(Toy("alone", slots=3))
    watched.add(0, TEXTS[0][:20], GREEDY)
    watched.finish()
    for job in range(1, 8):
        watched.add(job, [job, *TEXTS[1][:10]], GREEDY, batch=True)
    watched.finish()
    watched.add(8, TEXTS[0][:20], GREEDY)
    watched.finish()
    assert watched.tokens[8][0].cached == 19


@pytest.mark.parametrize("kind", ["recurrent", "window"])
def test_a_chat_whose_thoughts_are_left_out_later_is_read_on_from_there(kind: Kind) -> None:
    """Each turn parts from the one before at the end of its prompt; what is kept stays within its bounds."""
    watched, prompt = Watched(Toy(kind, slots=2)), TEXTS[0][:8]
    for turn in range(4):
        watched.add(turn, prompt, Sampling(max_tokens=6, temperature=0, ignore_eos=True))
        watched.finish()
        assert shown(watched.tokens[turn]) == shown(alone(prompt, watched.samplings[turn]))
        assert not turn or watched.tokens[turn][0].cached == len(prompt) - 8
        prompt = [*prompt, *TEXTS[1][turn : turn + 6]]
        kept = [one for slot in watched.engine._slots for one in slot.kept]
        assert len(kept) <= 2 * batching.KEEP_MOST and sum(len(one.state) for one in kept) <= batching.KEPT_BYTES


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_goes_on_after_its_engine_is_gone(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WORTH_SAVING", 4)
    greedy, prompt = Sampling(max_tokens=5, temperature=0, ignore_eos=True), TEXTS[0][:20]
    for turn in range(3):
        watched = Watched(Toy(kind), KvDisk(tmp_path / "kv" / "toy", 1 << 20))
        watched.add(turn, prompt, greedy)
        watched.finish()
        assert shown(watched.tokens[turn]) == shown(alone(prompt, greedy))
        assert watched.tokens[turn][0].cached == (len(prompt) - (5 if watched.model.forgets else 3) if turn else 0)
        while watched.engine.rest():
            assert watched.engine._saving
            watched.engine._saving.join()
        assert not watched.engine.rest()
        prompt = [*prompt, *TEXTS[1][turn : turn + 3]]
    assert len(list((tmp_path / "kv" / "toy").iterdir())) == 3


def test_all_that_was_read_is_saved_when_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WORTH_SAVING", 4)
    watched = Watched(Toy("alone"), KvDisk(tmp_path / "kv" / "toy", 1 << 20))
    for job, text in enumerate(TEXTS):
        watched.add(job, text[:20], Sampling(max_tokens=5, temperature=0, ignore_eos=True))
    watched.finish()
    while watched.engine.rest():
        pass
    assert len(list((tmp_path / "kv" / "toy").iterdir())) == len(TEXTS)


def test_the_prefix_that_was_used_longest_ago_makes_room() -> None:
    watched = Watched(Toy("alone", slots=3))
    for job, text in enumerate([*TEXTS, [5, 5, 5]]):
        watched.add(job, text[:20], Sampling(max_tokens=1, temperature=0))
        watched.finish()
    for job, text in enumerate(reversed(TEXTS), 4):
        watched.add(job, text[:20], Sampling(max_tokens=1, temperature=0))
        watched.finish()
    assert [watched.tokens[job][0].cached for job in (4, 5, 6)] == [19, 19, 0]


def test_a_long_text_is_not_given_up_for_a_short_beginning_of_it() -> None:
    watched = Watched(Toy())
    for job, prompt in enumerate([TEXTS[0][:30], [*TEXTS[0][:4], 9], TEXTS[0][:30]]):
        watched.add(job, prompt, Sampling(max_tokens=1, temperature=0))
        watched.finish()
    assert [watched.tokens[job][0].cached for job in range(3)] == [0, 4, 29]


def test_a_beginning_that_there_is_no_room_to_copy_is_read() -> None:
    watched = Watched(Toy("copied", cells=CONTEXT))
    for job, prompt in enumerate([TEXTS[0][:30], [*TEXTS[0][:10], 9]]):
        watched.add(job, prompt, GREEDY)
        watched.finish()
        assert shown(watched.tokens[job]) == shown(alone(prompt, GREEDY))
    assert watched.tokens[1][0].cached == 0


def crowded(jobs: int, slots: int) -> Watched:
    """Answers of 35 tokens each in a cache for 40."""
    watched = Watched(Toy("copied", slots, CONTEXT))
    for job in range(jobs):
        prompt = [7 * job + 1, *TEXTS[job % 3][:4]]
        watched.add(job, prompt, Sampling(max_tokens=30, temperature=1, seed=job, ignore_eos=True))
    return watched


def test_of_jobs_that_do_not_fit_together_the_youngest_are_read_again_once_for_each_that_ends() -> None:
    watched = crowded(jobs=4, slots=4)
    watched.finish()
    assert watched.model.most == CONTEXT
    begun = [chunk.tokens[0] // 7 for step in watched.model.steps for chunk in step if chunk.start == 0]
    assert begun.count(0) == 1
    assert len(begun) <= 4 + 3 + 2 + 1
    watched.add(4, [1, 1], GREEDY)
    watched.add(5, [2, 2], GREEDY)
    assert [token.job for token in watched.step()] == [4, 5]


def test_what_was_reused_is_told_of_when_a_job_came_first() -> None:
    watched = Watched(Toy("copied", slots=2, cells=CONTEXT))
    for job in range(2):  # the same prompt, which the second one finds in the first one's slot when it is read again
        watched.add(job, TEXTS[0][:5], Sampling(max_tokens=30, temperature=1, seed=job, ignore_eos=True))
    watched.finish()
    starts = [chunk.start for step in watched.model.steps for chunk in step if len(chunk.tokens) > 1]
    assert starts == [0, 0, 3, 5, 13]  # in chunks of eight: both are read, and the second again from what is reused
    assert {token.cached for token in watched.tokens[1]} == {0}


def test_a_full_cache_gives_up_what_was_used_longest_ago() -> None:
    watched = Watched(Toy("copied", slots=4, cells=CONTEXT))
    for job, text in enumerate([*TEXTS, [1] * 12, TEXTS[1], TEXTS[2]]):
        watched.add(job, text[: 12 if job < 3 else 11], Sampling(max_tokens=1, temperature=0))
        watched.finish()
    assert [watched.tokens[job][0].cached for job in (4, 5)] == [10, 10]


def test_a_job_sent_back_comes_before_those_that_wait() -> None:
    watched = crowded(jobs=4, slots=2)
    order: list[int] = []
    while watched.open():
        order += [token.job for token in watched.step()]
    assert order.index(2) > order.index(1)
    assert order.index(3) > len(order) - 1 - order[::-1].index(1)


def test_a_constraint_that_fails_costs_its_own_job_alone() -> None:
    watched = Watched(Toy())
    stuck = dict.fromkeys(range(END), STUCK)
    watched.add(0, [1, 2, 3], GREEDY)
    watched.add(1, [1, 2, 3], Sampling(max_tokens=12, temperature=0, ignore_eos=True, logit_bias=stuck))
    watched.add(2, [4, 5], GREEDY)
    watched.finish()
    assert [(t.id, t.failure) for t in watched.tokens[1]] == [(-1, "stuck")]
    assert [len(watched.tokens[job]) for job in (0, 2)] == [12, 12]


def test_a_cache_that_cannot_hold_one_sequence_says_what_to_raise() -> None:
    watched = Watched(Toy(cells=10))
    watched.add(0, [1] * 8, GREEDY)
    watched.finish()
    assert "raise memory_budget or kv_tokens" in watched.tokens[0][-1].failure
    watched.add(1, [1] * 4, Sampling(max_tokens=4, temperature=0, ignore_eos=True))
    watched.finish()
    assert len(watched.tokens[1]) == 4


def test_a_job_that_is_refused_leaves_nothing_behind() -> None:
    watched = Watched(Toy())
    for prompt, sampling in (([], GREEDY), ([VOCABULARY], GREEDY), ([1], Sampling(constraint=JSON_OBJECT))):
        with pytest.raises(Refused):
            watched.engine.add(0, prompt, sampling)
    watched.add(0, [1], GREEDY)
    watched.finish()
    watched.engine.remove(0)  # over already
    watched.engine.remove(99)
    watched.engine.close()
