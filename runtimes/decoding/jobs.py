"""The jobs of an engine: what each has said so far, what ends it, and who waits for a slot."""

import time
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from enginehouse.runtimes.contract import Constraint, Facts, Priority, Sampling, Scored, Token, check_tokens
from enginehouse.runtimes.decoding.constraints import Constraints
from enginehouse.runtimes.decoding.sampling import Choice
from enginehouse.runtimes.grammar.matcher import GrammarCompiler, Matcher

S = TypeVar("S")  # what an engine keeps for a job


class Running(Generic[S]):
    """A job that was admitted or waits for a slot."""

    state: S
    cached: int | None = None  # prompt tokens reused, of the first admission
    tier = ""  # where they were, as in PromptProgress
    waited = 0.0  # seconds until the first admission

    def __init__(
        self, job: int, ids: Sequence[int], sampling: Sampling, ends: frozenset[int], order: int, batch: bool = False
    ) -> None:
        self.job, self.sampling, self.ends, self.order, self.batch = job, sampling, ends, order, batch
        self.tokens = list(ids)  # prompt, then what was generated
        self.prompt = len(self.tokens)
        self._since = time.monotonic()

    @property
    def rank(self) -> tuple[bool, int]:
        """Among those who wait for a slot: interactive jobs first, then the oldest."""
        return self.batch, self.order

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt

    def note_slot(self, cached: int, tier: str) -> None:
        """It has a slot, not for the first time where it was sent back."""
        if self.cached is None:
            self.cached, self.tier, self.waited = cached, tier if cached else "", time.monotonic() - self._since

    def failed(self, reason: str) -> Token:
        return Token(self.job, -1, b"", cached=self.cached or 0, failure=reason)


class Jobs(Generic[S]):
    """All of them by number; those that wait, the next one first."""

    def __init__(
        self,
        facts: Facts,
        text: Callable[[int], bytes],
        grammar_compiler: Callable[[], GrammarCompiler],
        state: Callable[[Running[S]], S],
    ) -> None:
        """`state`: of a new job; raises Refused for what the engine cannot honour."""
        self.slots = facts.slots
        self._vocabulary, self._context_length = facts.vocabulary, facts.context_length
        self._text, self._new_grammar_compiler, self._state = text, grammar_compiler, state
        self.all: dict[int, Running[S]] = {}
        self.waiting: list[Running[S]] = []
        # After a preemption nobody is admitted until someone ends: else they preempt in turns for ever.
        self.hold = False
        self._order = 0
        self._grammar_compiler: GrammarCompiler | None = None
        self._matchers = Constraints(self.first_matcher)
        self.make_ready = self._matchers.make_ready

    def add(self, job: int, ids: Sequence[int], sampling: Sampling, ends: Iterable[int], priority: Priority) -> None:
        """`ends`: ids that end this answer beside those that were asked for."""
        check_tokens(ids, sampling, self._vocabulary)
        self._order += 1
        all_ends = frozenset((*sampling.stop_token_ids, *ends))
        running = Running[S](job, ids, sampling, all_ends, self._order, priority == "batch")
        running.state = self._state(running)
        self.all[job] = running
        self.wait(running)

    def wait(self, running: Running[S]) -> None:
        insort(self.waiting, running, key=lambda one: one.rank)

    def interactive(self, active: Iterable[Running[S]]) -> int:
        """How many there are, those who wait among them. `active`: those who hold slots."""
        return sum(not one.batch for one in (*active, *self.waiting))

    def matcher(self, constraint: Constraint) -> Matcher:
        return self._matchers.of(constraint).copy()

    def first_matcher(self, constraint: Constraint) -> Matcher:
        if self._grammar_compiler is None:
            self._grammar_compiler = self._new_grammar_compiler()
        return self._grammar_compiler.matcher(constraint)

    def token(self, running: Running[S], choice: Choice, complete: bool) -> Token:
        """What a job says next. `complete`: nothing may follow it."""
        id, cached, tokens = choice.token, running.cached or 0, running.tokens
        top = tuple([Scored(other, self._text(other), logprob) for other, logprob in choice.top]) if choice.top else ()
        first: dict[str, Any] = {} if running.generated else {"tier": running.tier, "waited": running.waited}
        if id in running.ends:
            return Token(running.job, -1, b"", "stop", cached, choice.logprob, top, **first)
        tokens.append(id)
        length = len(tokens)
        full = length - running.prompt == running.sampling.max_tokens or length >= self._context_length
        finish = "stop" if complete else "length" if full else None
        return Token(running.job, id, self._text(id), finish, cached, choice.logprob, top, **first)

    def left(self, running: Running[S]) -> int:
        """Tokens that it may still say."""
        room = self._context_length - len(running.tokens)
        most = running.sampling.max_tokens
        return room if most is None else min(room, most - running.generated)

    def send_back(self, running: Running[S]) -> None:
        """To be read again once there is more room: it is older than those of its class who wait."""
        self.wait(running)
        self.hold = True

    def close(self) -> None:
        self._matchers.close()

    def end(self, running: Running[S]) -> None:
        del self.all[running.job]
        if running in self.waiting:
            self.waiting.remove(running)
