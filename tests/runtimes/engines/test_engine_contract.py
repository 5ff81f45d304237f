"""What every engine must do, seen through the engine contract alone, on the pocket model."""

import asyncio
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import jsonschema
import msgspec
import pytest

from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.contract import (
    JSON_OBJECT,
    Constraint,
    Engine,
    Grammar,
    JsonSchema,
    Load,
    Local,
    Pieces,
    Pooling,
    Priority,
    Regex,
    Sampling,
    Structured,
    Token,
)
from enginehouse.runtimes.decoding import batching
from enginehouse.runtimes.decoding.speculation import StepCost
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.structure import JsonValue
from enginehouse.runtimes.tool_calls import parsers
from enginehouse.runtimes.tool_calls.parser import ParseOptions, Tool
from enginehouse.runtimes.worker.prompt import check_features
from tests.schemas import SCHEMAS

CONTEXT, SLOTS = 512, 4
GREEDY = Sampling(max_tokens=24, temperature=0)
T = TypeVar("T")
QUESTIONS = [
    "What is the capital of France?",
    "Count from 1 to 20",
    "What is 7 + 5?",
    "Who are you?",
    "Repeat: lemon river stone",
    "What is the opposite of hot?",
]
# What makes an engine's arithmetic the same whatever else is in the batch, where it has the option.
EXACT: dict[str, Any] = {"precision": "f32", "kv_precision": "f32", "flash_attention": "off", "prefill_chunk": 32}
ENGINES = [name for name in runtimes() if name != "echo"]


def exact(runtime: Local) -> dict[str, Any]:
    return {name: value for name, value in EXACT.items() if name in runtime.options.__struct_fields__}


def prompt(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module", params=ENGINES)
def build(request: Any, folder: Path) -> Any:
    """Loads the pocket model in 32 bits into this engine, as often as a test likes; or the checkpoint itself."""
    runtime = runtimes()[request.param]
    if reason := runtime.unavailable():
        pytest.skip(reason)

    async def artifact() -> str:
        source = await locate("builtin:pocket", None, lambda stage, done: None)
        if runtime.format == source.kind:
            return source.path
        toolchain = toolchains()[runtime.format]
        return (
            await prepare(
                source, toolchain, toolchain.precisions["f32"], folder / "cache", lambda stage, done: None, rules=None
            )
        ).path

    path = asyncio.run(artifact())

    def load(**options: Any) -> Engine:
        slots = options.pop("slots", SLOTS)
        place = options.pop("place", path)
        kv = options.pop("kv", "")
        own = exact(runtime) | options
        given = Load(runtime.name, place, CONTEXT, slots, 2, 0, own, kv_folder=kv, kv_bytes=1 << 30)
        return runtime.load(given, lambda fraction: None)

    load.runtime, load.path = runtime, path  # type: ignore[attr-defined]
    return load


@pytest.fixture(scope="module")
def engine(build: Any) -> Iterator[Engine]:
    engine = build()
    yield engine
    engine.close()


class Jobs:
    """Runs jobs to their end through the step loop and keeps what came out."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: dict[int, list[Token]] = {}

    def add(
        self, job: int, ids: Sequence[int], sampling: Sampling = GREEDY, priority: Priority = "interactive"
    ) -> None:
        self.tokens[job] = []
        self.engine.add(job, ids, sampling, priority)

    def step(self) -> list[Token]:
        tokens = self.engine.step()
        for token in tokens:
            self.tokens[token.job].append(token)
        return tokens

    def finish(self) -> None:
        running = {job for job, tokens in self.tokens.items() if not (tokens and ended(tokens[-1]))}
        while running:
            running -= {token.job for token in self.step() if ended(token)}

    def text(self, job: int) -> bytes:
        return b"".join(token.text for token in self.tokens[job])


def ended(token: Token) -> bool:
    return bool(token.finish or token.failure)


def answer(engine: Engine, text: str, sampling: Sampling = GREEDY) -> Jobs:
    jobs = Jobs(engine)
    jobs.add(0, engine.encode(text), sampling)
    jobs.finish()
    return jobs


def whole(pieces: Pieces[T]) -> T:
    """The result of all pieces."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result


def needs(engine: Engine, feature: str) -> None:
    if feature not in engine.facts.features:
        pytest.skip(f"'{feature}' is not honoured by this engine")


def test_greedy_text_is_the_reference_implementations(engine: Engine, reference: Any) -> None:
    for question in QUESTIONS:
        ids = engine.encode(prompt(question))
        assert ids == reference.encode(prompt(question))
        jobs = answer(engine, prompt(question))
        assert [token.id for token in jobs.tokens[0] if token.id >= 0] == reference.greedy(ids, 24)


def test_jobs_together_give_what_each_gives_alone(engine: Engine) -> None:
    alone = [answer(engine, prompt(question)).text(0) for question in QUESTIONS]
    jobs = Jobs(engine)
    for number, question in enumerate(QUESTIONS):  # more jobs than slots: the last ones wait
        jobs.add(number, engine.encode(prompt(question)))
    jobs.finish()
    assert [jobs.text(number) for number in range(len(QUESTIONS))] == alone


def test_joining_and_leaving_in_the_middle_disturbs_nobody(engine: Engine) -> None:
    alone = answer(engine, prompt(QUESTIONS[1])).text(0)
    jobs = Jobs(engine)
    jobs.add(0, engine.encode(prompt(QUESTIONS[1])))
    while len(jobs.tokens[0]) < 3:
        jobs.step()
    jobs.add(1, engine.encode(prompt(QUESTIONS[0])), Sampling(max_tokens=200, temperature=0, ignore_eos=True))
    while len(jobs.tokens[1]) < 3:
        jobs.step()
    engine.remove(1)
    del jobs.tokens[1]
    jobs.finish()
    assert jobs.text(0) == alone


def test_a_removed_job_says_nothing_more_and_frees_its_slot(engine: Engine) -> None:
    jobs = Jobs(engine)
    endless = Sampling(max_tokens=400, temperature=0, ignore_eos=True)
    for number in range(SLOTS):
        jobs.add(number, engine.encode(prompt(QUESTIONS[number])), endless)
    jobs.step()
    for number in range(SLOTS):
        engine.remove(number)
    jobs.tokens.clear()
    jobs.add(99, engine.encode(prompt(QUESTIONS[0])))
    jobs.finish()
    assert b"Paris" in jobs.text(99)


def test_a_job_removed_while_its_prompt_is_read_leaves_the_engine_whole(engine: Engine) -> None:
    jobs = Jobs(engine)
    long = engine.encode(prompt("river stone " * 100))
    jobs.add(0, long)
    assert jobs.step() == []
    engine.remove(0)
    del jobs.tokens[0]
    jobs.add(1, engine.encode(prompt(QUESTIONS[0])))
    jobs.finish()
    assert b"Paris" in jobs.text(1)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(engine: Engine) -> None:
    def told(seed: int) -> bytes:
        wild = Sampling(max_tokens=60, temperature=2.0, seed=seed)
        answer(engine, prompt("hello"))  # something else in the cache, so that each run starts alike
        return answer(engine, prompt("Tell me a story about a fox."), wild).text(0)

    assert told(7) == told(7)
    assert len({told(seed) for seed in range(5)}) > 1


def test_max_tokens_ends_the_answer_with_length(engine: Engine) -> None:
    jobs = answer(engine, prompt(QUESTIONS[1]), Sampling(max_tokens=5, temperature=0))
    assert len(jobs.tokens[0]) == 5
    assert jobs.tokens[0][-1].finish == "length"


def test_the_model_ends_its_answer_with_stop(engine: Engine) -> None:
    assert answer(engine, prompt(QUESTIONS[0])).tokens[0][-1].finish == "stop"


def test_min_tokens_puts_off_the_end(engine: Engine) -> None:
    short = [t for t in answer(engine, prompt(QUESTIONS[0])).tokens[0] if t.id >= 0]
    sampling = Sampling(max_tokens=60, min_tokens=len(short) + 10, temperature=0)
    longer = [t for t in answer(engine, prompt(QUESTIONS[0]), sampling).tokens[0] if t.id >= 0]
    assert len(longer) >= len(short) + 10


def test_ignore_eos_goes_on_to_max_tokens(engine: Engine) -> None:
    jobs = answer(engine, prompt(QUESTIONS[0]), Sampling(max_tokens=80, temperature=0, ignore_eos=True))
    assert len(jobs.tokens[0]) == 80
    assert jobs.tokens[0][-1].finish == "length"


def test_the_end_of_the_context_ends_the_answer_with_length(engine: Engine) -> None:
    ids = engine.encode(prompt("river stone " * 60))
    jobs = Jobs(engine)
    jobs.add(0, ids, Sampling(temperature=0, ignore_eos=True))
    jobs.finish()
    assert len(ids) + len(jobs.tokens[0]) == CONTEXT
    assert jobs.tokens[0][-1].finish == "length"


def test_max_tokens_beyond_the_context_is_as_good_as_none(engine: Engine) -> None:
    ids = engine.encode(prompt("river stone " * 60))
    for max_tokens in (CONTEXT, 2**31 - 1):
        jobs = Jobs(engine)
        jobs.add(0, ids, Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True))
        jobs.finish()
        assert len(ids) + len(jobs.tokens[0]) == CONTEXT
        assert jobs.tokens[0][-1].finish == "length"


def test_a_prefix_is_read_once_and_the_text_stays_the_same(engine: Engine) -> None:
    answer(engine, prompt("something else entirely"))
    story = prompt("Repeat: " + "river stone " * 20)
    first = answer(engine, story)
    again = answer(engine, story)
    assert len(engine.encode(story)) > again.tokens[0][0].cached >= len(engine.encode(story)) // 2
    assert again.text(0) == first.text(0)


def test_a_prefix_is_shared_with_a_job_still_running(engine: Engine) -> None:
    story = engine.encode(prompt("Repeat: " + "paper silver " * 20))
    jobs = Jobs(engine)
    jobs.add(0, story, Sampling(max_tokens=60, temperature=0, ignore_eos=True))
    while not jobs.tokens[0]:
        jobs.step()
    jobs.add(1, story)
    jobs.finish()
    assert len(story) > jobs.tokens[1][0].cached >= len(story) // 2
    assert jobs.text(1) == jobs.text(0)[: len(jobs.text(1))]


def test_when_the_kv_cache_is_full_every_job_still_gets_its_whole_answer(build: Any, engine: Engine) -> None:
    """Four jobs of up to 500 tokens in a cache of 512: some must be sent back and read again."""
    if "kv_tokens" not in build.runtime.options.__struct_fields__:
        pytest.skip("every slot of this engine has a cache of its own")
    sampling = Sampling(max_tokens=200, temperature=0, ignore_eos=True)
    roomy = build(slots=1)
    alone = [answer(roomy, prompt(question), sampling).text(0) for question in QUESTIONS[:4]]
    roomy.close()
    tight = build(kv_tokens=CONTEXT)
    jobs = Jobs(tight)
    for number, question in enumerate(QUESTIONS[:4]):
        jobs.add(number, tight.encode(prompt(question)), sampling)
    jobs.finish()
    tight.close()
    assert [jobs.text(number) for number in range(4)] == alone


def test_interactive_jobs_begin_before_batch_ones(engine: Engine) -> None:
    jobs, began, question = Jobs(engine), list[int](), engine.encode(prompt(QUESTIONS[1]))
    for number in range(2 * SLOTS):
        jobs.add(number, question, GREEDY, "batch")
    while not jobs.step():
        pass
    for number in range(100, 100 + SLOTS):
        jobs.add(number, question)
    while not all(jobs.tokens.values()):
        began += [token.job for token in jobs.step() if len(jobs.tokens[token.job]) == 1]
    jobs.finish()
    waited = [number for number in began if number >= SLOTS]  # the first batch jobs had slots before anybody came
    assert {*waited[:SLOTS]} == {*range(100, 100 + SLOTS)}
    assert {*waited[SLOTS:]} == {*range(SLOTS, 2 * SLOTS)}


def test_a_chat_answers_in_every_step_and_the_batch_goes_on_beside_it(engine: Engine) -> None:
    endless = Sampling(max_tokens=150, temperature=0, ignore_eos=True)
    jobs = Jobs(engine)
    for number in range(2 * SLOTS):
        jobs.add(number, engine.encode(prompt(QUESTIONS[number % 3])), endless, "batch")
    while len(jobs.tokens[0]) < 3:
        jobs.step()
    jobs.add(99, engine.encode(prompt(QUESTIONS[3])), Sampling(max_tokens=60, temperature=0, ignore_eos=True))
    while not jobs.tokens[99]:
        jobs.step()
    said = [[token.job for token in jobs.step()] for _ in range(59)]
    assert all(99 in step for step in said)
    assert any(len(step) > 1 for step in said)
    for number in range(2 * SLOTS):
        engine.remove(number)


def test_a_batch_job_that_made_way_says_what_it_says_alone(engine: Engine) -> None:
    samplings = [
        Sampling(max_tokens=60, temperature=0, ignore_eos=True),
        Sampling(max_tokens=60, temperature=1.0, seed=5, ignore_eos=True),
        Sampling(max_tokens=60, temperature=0, repetition_penalty=1.2, ignore_eos=True),
    ]
    alone = [answer(engine, prompt(QUESTIONS[n]), sampling).text(0) for n, sampling in enumerate(samplings)]
    jobs = Jobs(engine)
    for number, sampling in enumerate(samplings):
        jobs.add(number, engine.encode(prompt(QUESTIONS[number])), sampling, "batch")
    while any(len(jobs.tokens[number]) < 5 for number in range(3)):
        jobs.step()
    for number in range(100, 100 + 2 * SLOTS):
        jobs.add(number, engine.encode(prompt(QUESTIONS[number % 6])))
    jobs.finish()
    assert [jobs.text(number) for number in range(3)] == alone
    assert max(token.cached for token in jobs.tokens[0]) == jobs.tokens[0][0].cached


def test_a_prompt_is_not_read_again_by_the_worker_that_follows(build: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(batching, "WORTH_SAVING", 32)
    text, kv = prompt("Repeat: " + "paper silver " * 20), str(tmp_path / "kv" / "model")
    first = build(kv=kv)
    said = answer(first, text)
    begun, length = first.rest(), len(first.encode(text))
    if isinstance(first, batching.BatchedEngine) and first._saving:
        first._saving.join()
    first.close()
    if not begun:
        pytest.skip("this engine's KV does not outlive it")
    second = build(kv=kv)
    again = answer(second, text)
    second.close()
    assert again.text(0) == said.text(0)
    assert again.tokens[0][0].cached == length - 1


def test_a_bias_bars_a_token(engine: Engine) -> None:
    needs(engine, "logit_bias")
    first = answer(engine, prompt(QUESTIONS[0])).tokens[0][0].id
    barred = Sampling(max_tokens=24, temperature=0, logit_bias={first: -100.0})
    assert first not in [token.id for token in answer(engine, prompt(QUESTIONS[0]), barred).tokens[0]]


@pytest.mark.parametrize(
    ("ids", "sampling", "param"),
    [
        ([-1], Sampling(), "messages"),
        ([99_999_999], Sampling(), "messages"),
        ([], Sampling(), "messages"),
        ([1], Sampling(logit_bias={99_999_999: 1.0}), "logit_bias"),
        ([1], Sampling(stop_token_ids=(99_999_999,)), "stop_token_ids"),
    ],
)
def test_a_token_that_is_none_is_refused_and_hurts_nobody(
    engine: Engine, ids: list[int], sampling: Sampling, param: str
) -> None:
    with pytest.raises(Refused) as refused:
        engine.add(0, ids, sampling)
    assert refused.value.param == param
    assert answer(engine, prompt(QUESTIONS[0])).tokens[0][-1].finish == "stop"


def test_a_repetition_penalty_counts_the_prompt_too(engine: Engine) -> None:
    needs(engine, "repetition_penalty")
    ids = engine.encode(prompt(QUESTIONS[0]))
    said = [token.id for token in answer(engine, prompt(QUESTIONS[0])).tokens[0]]
    assert set(said) & set(ids)
    sampling = Sampling(max_tokens=8, temperature=0, repetition_penalty=100.0)
    punished = [token.id for token in answer(engine, prompt(QUESTIONS[0]), sampling).tokens[0]]
    assert not set(punished) & set(ids)
    assert len(set(punished)) == len(punished)


def test_a_frequency_penalty_ends_a_repetition(engine: Engine) -> None:
    needs(engine, "frequency_penalty")
    question = prompt("Repeat: lemon lemon lemon lemon lemon lemon")

    def most_said(penalty: float) -> int:
        sampling = Sampling(max_tokens=40, temperature=0, ignore_eos=True, frequency_penalty=penalty)
        said = [token.id for token in answer(engine, question, sampling).tokens[0]]
        return max(said.count(id) for id in said)

    assert most_said(2.0) < most_said(0.0)


def test_a_presence_penalty_counts_generated_tokens_only(engine: Engine) -> None:
    needs(engine, "presence_penalty")
    question = prompt("Repeat: lemon river stone")
    punished = answer(engine, question, Sampling(max_tokens=3, temperature=0, presence_penalty=2.0)).text(0)
    assert punished == answer(engine, question, Sampling(max_tokens=3, temperature=0)).text(0)


def test_top_k_of_one_is_greedy_at_any_temperature(engine: Engine) -> None:
    wild = Sampling(max_tokens=24, temperature=2.0, top_k=1)
    assert answer(engine, prompt(QUESTIONS[1]), wild).text(0) == answer(engine, prompt(QUESTIONS[1])).text(0)


def test_a_stop_token_ends_the_answer_and_is_not_shown(engine: Engine) -> None:
    said = answer(engine, prompt(QUESTIONS[1])).tokens[0]
    stop = said[5].id
    first = next(at for at, token in enumerate(said) if token.id == stop)
    jobs = answer(engine, prompt(QUESTIONS[1]), Sampling(max_tokens=24, temperature=0, stop_token_ids=(stop,)))
    assert [token.id for token in jobs.tokens[0]] == [*(token.id for token in said[:first]), -1]
    assert jobs.tokens[0][-1].finish == "stop"


def test_whatever_is_not_honoured_is_refused_by_name(engine: Engine) -> None:
    """No field may be dropped in silence: each is in the engine's list, or the worker refuses it."""
    asked: dict[str, Any] = {
        "min_tokens": 1, "ignore_eos": True, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "seed": 1,
        "frequency_penalty": 1.0, "presence_penalty": 1.0, "repetition_penalty": 1.1, "logit_bias": {1: 1.0},
        "stop_token_ids": (1,), "logprobs": 0, "constraint": Regex("a"), "max_tokens": 1, "prediction": "a",
    }  # fmt: skip
    assert asked.keys() | {"stop"} == set(Sampling.__struct_fields__)
    for name, value in asked.items():
        sampling = Sampling(**{name: value})
        feature = "regex" if name == "constraint" else name
        if feature in engine.facts.features:
            check_features(sampling, engine.facts)
        else:
            with pytest.raises(Refused) as refused:
                check_features(sampling, engine.facts)
            assert refused.value.param == ("response_format" if name == "constraint" else name)


# --- log-probabilities ---


def test_logprobs_are_the_models_own_whatever_the_sampling(engine: Engine, reference: Any) -> None:
    needs(engine, "logprobs")
    ids = engine.encode(prompt(QUESTIONS[1]))
    for sampling in (GREEDY, Sampling(max_tokens=24, temperature=1.7, seed=3, top_k=50)):
        jobs = answer(engine, prompt(QUESTIONS[1]), msgspec.structs.replace(sampling, logprobs=0))
        said = [token for token in jobs.tokens[0] if token.id >= 0]
        rows = reference.logprobs(ids + [token.id for token in said], len(ids))
        assert len(rows) == len(said) > 3
        for token, row in zip(said, rows, strict=True):
            assert token.logprob == pytest.approx(row[token.id], abs=1e-2)


def test_the_likeliest_tokens_are_the_references(engine: Engine, reference: Any) -> None:
    needs(engine, "top_logprobs")
    ids = engine.encode(prompt(QUESTIONS[1]))
    jobs = answer(engine, prompt(QUESTIONS[1]), Sampling(max_tokens=8, temperature=0, logprobs=5))
    said = [token for token in jobs.tokens[0] if token.id >= 0]
    for token, row in zip(said, reference.logprobs(ids + [token.id for token in said], len(ids)), strict=True):
        assert [scored.logprob for scored in token.top] == pytest.approx(sorted(row, reverse=True)[:5], abs=1e-2)
        assert [row[scored.id] for scored in token.top] == pytest.approx([s.logprob for s in token.top], abs=1e-2)
        best = token.top[0]
        assert (best.id, best.text, best.logprob) == (token.id, token.text, token.logprob)


def test_the_token_that_ends_an_answer_has_a_logprob_too(engine: Engine, reference: Any) -> None:
    needs(engine, "logprobs")
    ids = engine.encode(prompt(QUESTIONS[0]))
    *said, last = answer(engine, prompt(QUESTIONS[0]), Sampling(max_tokens=24, temperature=0, logprobs=0)).tokens[0]
    end = reference.encode("<|im_end|>")
    (row,) = reference.logprobs([*ids, *(token.id for token in said), *end], len(ids) + len(said))
    assert (last.id, last.finish) == (-1, "stop")
    assert last.logprob == pytest.approx(row[end[0]], abs=1e-2)


def test_a_prompts_logprobs_are_the_references(engine: Engine, reference: Any) -> None:
    needs(engine, "prompt_logprobs")
    ids = engine.encode(prompt("The capital of France is Paris. " * 12))
    assert len(ids) > 64
    for text in (ids, ids[:2], ids[:65], ids[:66]):
        scores, rows = whole(engine.score(text, 3)), reference.logprobs(text, 1)
        assert [one.token.id for one in scores] == text[1:]
        for one, row in zip(scores, rows, strict=True):
            assert one.token.logprob == pytest.approx(row[one.token.id], abs=1e-2)
            assert [top.logprob for top in one.top] == pytest.approx(sorted(row, reverse=True)[:3], abs=1e-2)
    assert whole(engine.score(ids[:1], 0)) == []


def test_scoring_disturbs_no_answer(engine: Engine) -> None:
    needs(engine, "prompt_logprobs")
    alone = answer(engine, prompt(QUESTIONS[1])).text(0)
    jobs = Jobs(engine)
    jobs.add(0, engine.encode(prompt(QUESTIONS[1])))
    while len(jobs.tokens[0]) < 3:
        jobs.step()
    whole(engine.score(engine.encode("hello there"), 0))
    jobs.finish()
    assert jobs.text(0) == alone


def test_no_logprobs_are_computed_unless_asked_for(engine: Engine) -> None:
    tokens = answer(engine, prompt(QUESTIONS[0])).tokens[0]
    assert all(token.logprob is None and token.top == () for token in tokens)


# --- constraints ---


def constrained(engine: Engine, constraints: Sequence[Constraint], **sampling: Any) -> list[tuple[str, str]]:
    """Text and finish reason of a job under each, all together."""
    jobs = Jobs(engine)
    for number, constraint in enumerate(constraints):
        options = {"max_tokens": 200, "temperature": 1.0, "seed": number} | sampling
        jobs.add(number, engine.encode(prompt(QUESTIONS[0])), Sampling(**options, constraint=constraint))
    jobs.finish()
    return [(jobs.text(n).decode(), str(jobs.tokens[n][-1].finish)) for n in range(len(constraints))]


def test_every_answer_under_a_schema_that_ended_by_itself_validates(engine: Engine) -> None:
    needs(engine, "json_schema")
    taken, refused = [], []
    for name, schema in SCHEMAS.items():
        constraint = JsonSchema(json.dumps(schema))
        try:
            engine.add(10_000, engine.encode("x"), Sampling(max_tokens=1, constraint=constraint))
            engine.remove(10_000)
            taken.append((name, schema, constraint))
        except Refused as error:
            refused.append((name, error))
    ended = 0
    answers = constrained(engine, [constraint for _, _, constraint in taken])
    for (name, schema, _), (text, finish) in zip(taken, answers, strict=True):
        if finish == "stop":
            ended += 1
            jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        else:
            assert text.lstrip()[:1] in '"{[-0123456789tfn', name
    assert ended >= 15
    assert len(refused) <= 3, refused
    assert all(error.param == "response_format" and len(str(error)) > 20 for _, error in refused)


def test_an_answer_under_a_regex_matches_it(engine: Engine) -> None:
    needs(engine, "regex")
    patterns = [r"(yes|no), [0-9]{3}", r"[a-z]{4,8}@[a-z]{2,9}\.(com|org)", r"\d{4}-(0[1-9]|1[0-2])"]
    for pattern, (text, finish) in zip(patterns, constrained(engine, [Regex(p) for p in patterns]), strict=True):
        assert finish == "stop"
        assert re.fullmatch(pattern, text)


def test_an_answer_under_a_grammar_derives_from_it(engine: Engine) -> None:
    needs(engine, "grammar")
    lark = 'start: sum\nsum: NUMBER ("+" NUMBER)+ "=" NUMBER\nNUMBER: /[1-9][0-9]?/'
    ((text, finish),) = constrained(engine, [Grammar(lark)], max_tokens=60)
    assert finish == "length" or re.fullmatch(r"[1-9]\d?(\+[1-9]\d?)+=[1-9]\d?", text)


def test_a_free_json_object_is_one(engine: Engine) -> None:
    needs(engine, "json_schema")
    answers = constrained(engine, [JSON_OBJECT] * 4, temperature=0.5)
    assert all(text.lstrip().startswith("{") for text, _ in answers)
    assert all(isinstance(json.loads(text), dict) for text, finish in answers if finish == "stop")


def test_text_beyond_ascii_comes_whole_over_tokens_that_split_it(engine: Engine) -> None:
    needs(engine, "regex")
    ((text, finish),) = constrained(engine, [Regex("🦊 ünï 中文 👩‍👩‍👧")])
    assert (text, finish) == ("🦊 ünï 中文 👩‍👩‍👧", "stop")


@pytest.mark.parametrize(
    "constraint",
    [
        JsonSchema('{"type": "colour"}'),
        JsonSchema("[1"),
        JsonSchema('{"$ref": "#/nowhere"}'),
        Regex("(a"),
        Regex("[z-a]"),
    ],
)
def test_a_constraint_that_cannot_be_enforced_is_refused_before_anything_runs(
    engine: Engine, constraint: Constraint
) -> None:
    needs(engine, constraint.__struct_config__.tag)  # type: ignore[arg-type]
    with pytest.raises(Refused) as refused:
        engine.add(0, engine.encode("x"), Sampling(constraint=constraint))
    assert refused.value.param == "response_format"
    assert answer(engine, prompt(QUESTIONS[0])).tokens[0][-1].finish == "stop"


def test_a_constraint_binds_only_its_own_job(engine: Engine) -> None:
    needs(engine, "regex")
    alone = answer(engine, prompt(QUESTIONS[1])).text(0)
    jobs = Jobs(engine)
    jobs.add(0, engine.encode(prompt(QUESTIONS[1])))
    jobs.add(
        1, engine.encode(prompt(QUESTIONS[1])), Sampling(max_tokens=40, temperature=0, constraint=Regex("[xyz]{12}"))
    )
    jobs.finish()
    assert jobs.text(0) == alone
    assert re.fullmatch(rb"[xyz]{12}", jobs.text(1))


def test_a_constraint_that_leaves_nothing_to_say_ends_its_own_job_only(engine: Engine) -> None:
    needs(engine, "regex")
    alone = answer(engine, prompt(QUESTIONS[1])).text(0)
    a, b = engine.encode("a") + engine.encode("b")
    stuck = Sampling(max_tokens=9, min_tokens=1, temperature=0, stop_token_ids=(a, b), constraint=Regex("[ab]"))
    jobs = Jobs(engine)
    jobs.add(0, engine.encode(prompt(QUESTIONS[1])))
    jobs.add(1, engine.encode(prompt(QUESTIONS[1])), stuck)
    jobs.finish()
    assert jobs.text(0) == alone
    assert jobs.tokens[1][-1].failure or jobs.tokens[1][-1].finish == "length"


# --- tool calls ---

MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def with_special_marks(artifact: Path, folder: Path) -> str:
    """A copy whose tokenizer calls the marks special, as those of many families do."""
    if artifact.suffix == ".gguf":
        from gguf import GGUFReader, TokenType

        copy = folder / artifact.name
        shutil.copy(artifact, copy)
        fields = GGUFReader(copy, "r+").fields
        tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        for at, token in enumerate(tokens.contents()):
            if token in MARKS:
                types.parts[types.data[at]][0] = TokenType.CONTROL
        return str(copy)
    shutil.copytree(artifact, folder / "model")
    file = folder / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        token["special"] = token["special"] or token["content"] in MARKS
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    return str(folder / "model")


def test_what_marks_thoughts_and_calls_is_shown_though_the_tokenizer_calls_it_special(
    build: Any, engine: Engine, tmp_path: Path
) -> None:
    needs(engine, "tools")
    engine = build(place=with_special_marks(Path(build.path), tmp_path))
    ids = engine.encode("".join(MARKS))
    assert [engine.text(id).decode() for id in ids] == list(MARKS)
    assert engine.text(engine.encode("<|im_end|>")[-1]) == b""
    city = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    tool = Tool("get_weather", JsonValue(json.dumps(city | {"additionalProperties": False}), must=True))
    structure = parsers.parser_of(engine.facts.chat_template).structure(
        ParseOptions((tool,), required=True, parallel=False)
    )
    jobs = answer(
        engine, prompt("Weather in Rome?"), Sampling(max_tokens=60, temperature=0, constraint=Structured(structure))
    )
    said = re.fullmatch(r"\n{0,2}<tool_call>\n(.*)\n</tool_call>", jobs.text(0).decode())
    assert said, jobs.text(0)
    assert json.loads(said[1]) == {"name": "get_weather", "arguments": {"city": "Rome"}}
    assert ids[2] in [token.id for token in jobs.tokens[0]]
    engine.close()


# --- embeddings ---


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_an_embedding_is_the_references(engine: Engine, reference: Any, pooling: Pooling) -> None:
    needs(engine, "embeddings")
    texts = ["hello", "The capital of France is Paris. " * 20, "中文"]
    ids = [engine.encode(text) for text in texts]
    for text in ids:
        vector = whole(engine.embed(text, pooling))
        assert vector == pytest.approx(reference.embedding(text, pooling), abs=1e-3)
        assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-3)


def test_embedding_disturbs_no_answer(engine: Engine) -> None:
    needs(engine, "embeddings")
    alone = answer(engine, prompt(QUESTIONS[1])).text(0)
    jobs = Jobs(engine)
    jobs.add(0, engine.encode(prompt(QUESTIONS[1])))
    while len(jobs.tokens[0]) < 3:
        jobs.step()
    whole(engine.embed(engine.encode("hello"), "mean"))
    jobs.finish()
    assert jobs.text(0) == alone


def test_guesses_change_no_answer(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and together, greedy and drawn by a seed, which is more than the same distribution."""
    if "speculation" not in build.runtime.options.__struct_fields__:
        pytest.skip(f"{build.runtime.name} does not guess")
    monkeypatch.setattr(StepCost, "of_row", lambda self, rows: 0.1)  # whatever it costs here
    told = "".join(f"{prompt(question)}The answer is yes, of course.<|im_end|>\n" for question in QUESTIONS)
    drawn = [Sampling(max_tokens=40, temperature=0.8, top_p=0.9, seed=seed) for seed in range(4)]
    samplings = [
        msgspec.structs.replace(GREEDY, max_tokens=60, ignore_eos=True),
        msgspec.structs.replace(GREEDY, max_tokens=60, constraint=JSON_OBJECT),
        msgspec.structs.replace(GREEDY, max_tokens=60, min_tokens=50, logprobs=2, repetition_penalty=1.1),
        *drawn,
    ]
    said, guessed, wrong = list[Any](), 0, 0
    for speculation in ("off", "lookup"):
        engine = build(speculation=speculation)
        if speculation == "lookup" and "prediction" not in engine.facts.features:
            engine.close()
            pytest.skip("this way of running a graph does not guess")
        for constraint in filter(None, (sampling.constraint for sampling in samplings)):
            whole(engine.make_ready(constraint))
        for together in (1, SLOTS):
            for start in range(0, len(samplings), together):
                jobs = Jobs(engine)
                for job, sampling in enumerate(samplings[start : start + together]):
                    jobs.add(job, engine.encode(told + prompt(QUESTIONS[job])), sampling)
                jobs.finish()
                said.append([[(token.id, token.finish) for token in tokens] for tokens in jobs.tokens.values()])
                guessed += sum(token.guessed for tokens in jobs.tokens.values() for token in tokens)
                wrong += sum(token.wrong for tokens in jobs.tokens.values() for token in tokens)
        engine.close()
    half = len(said) // 2
    assert said[:half] == said[half:]
    assert guessed > 5 and wrong > 5
