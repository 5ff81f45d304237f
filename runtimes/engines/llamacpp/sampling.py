"""How an answer's tokens are chosen on llama.cpp."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from enginehouse.runtimes.contract import Sampling
from enginehouse.runtimes.decoding.sampling import GREEDY_BELOW, Choice, with_logprobs
from enginehouse.runtimes.grammar.matcher import Matcher

if TYPE_CHECKING:
    from enginehouse.runtimes.engines.llamacpp.engine import LlamaCpp


class Chain:
    """One answer's way of choosing: llama.cpp's own samplers. Bias and penalties, then temperature, top_k, top_p, min_p
    in the order of the reference implementation."""

    def __init__(
        self, model: "LlamaCpp", sampling: Sampling, prompt: Sequence[int], ends: Sequence[int], matcher: Matcher | None
    ) -> None:
        self._model, self._sampling, self._ends, self._matcher = model, sampling, ends, matcher
        self._generated = 0
        self._barred = sampling.min_tokens > 0 and bool(ends)
        self._chain = self._samplers(prompt)

    def choose(self, row: int) -> Choice:
        model, count = self._model, self._sampling.logprobs
        raw = None if count is None else model.logits(row).copy()
        if self._matcher:
            self._matcher.forbid(model.logits(row))
        token = model.lib.llama_sampler_sample(self._chain, model.context, row)
        return Choice(token) if raw is None else with_logprobs(token, raw, count or 0)

    def accept(self, token: int) -> bool:
        self._generated += 1
        if self._barred and self._generated >= self._sampling.min_tokens:
            self._model.lib.llama_sampler_free(self._model.lib.llama_sampler_chain_remove(self._chain, 0))
            self._barred = False
        return self._matcher.accept(token) if self._matcher else False

    def close(self) -> None:
        self._model.lib.llama_sampler_free(self._chain)

    def _samplers(self, prompt: Sequence[int]) -> Any:
        lib, s, facts = self._model.lib, self._sampling, self._model.facts
        params = lib.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = lib.llama_sampler_chain_init(params)

        def add(sampler: Any) -> None:
            lib.llama_sampler_chain_add(chain, sampler)

        if self._barred:
            add(self._bias(dict.fromkeys(self._ends, float("-inf"))))
        if s.logit_bias:
            add(self._bias(s.logit_bias))
        if s.repetition_penalty != 1:
            penalty = lib.llama_sampler_init_penalties(
                facts.vocabulary, facts.context_length, s.repetition_penalty, 0.0, 0.0
            )
            for token in prompt:
                lib.llama_sampler_accept(penalty, token)
            add(penalty)
        if s.frequency_penalty or s.presence_penalty:
            add(
                lib.llama_sampler_init_penalties(
                    facts.vocabulary, facts.context_length, 1.0, s.frequency_penalty, s.presence_penalty
                )
            )
        if s.temperature < GREEDY_BELOW:
            add(lib.llama_sampler_init_greedy())
            return chain
        if s.top_k > 0:  # commutes with temperature, and makes all that follows cheap
            add(lib.llama_sampler_init_top_k(min(s.top_k, facts.vocabulary)))
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
        entries = (self._model.lib.llama_logit_bias * len(bias))(
            *[self._model.lib.llama_logit_bias(t, b) for t, b in bias.items()]
        )
        return self._model.lib.llama_sampler_init_logit_bias(self._model.facts.vocabulary, len(bias), entries)
