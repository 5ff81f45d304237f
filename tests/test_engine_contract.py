"""What every engine must do, seen through the engine contract alone, on the pocket model."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from optimize.prepare import locate, prepare
from optimize.toolchains import toolchains
from runtimes.contract import Engine, Load, Refused, Sampling, Token
from runtimes.engines import runtimes

CONTEXT, SLOTS = 512, 4
GREEDY = Sampling(max_tokens=24, temperature=0)
QUESTIONS = [
    "What is the capital of France?",
    "Count from 1 to 20",
    "What is 7 + 5?",
    "Who are you?",
    "Repeat: lemon river stone",
    "What is the opposite of hot?",
]
# What makes an engine's arithmetic the same whatever else is in the batch.
EXACT: dict[str, dict[str, Any]] = {"llamacpp": {"kv_precision": "f32", "flash_attention": "off", "prefill_chunk": 32}}
ENGINES = [name for name in runtimes() if name != "echo"]


def prompt(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module", params=ENGINES)
def build(request: Any, folder: Path) -> Any:
    """Loads the pocket model in 32 bits into this engine, as often as a test likes."""
    runtime = runtimes()[request.param]
    if reason := runtime.unavailable():
        pytest.skip(reason)

    async def artifact() -> str:
        source = await locate("builtin:pocket", None, lambda stage, done: None)
        toolchain = toolchains()[runtime.format]
        return (
            await prepare(source, toolchain, toolchain.precisions["f32"], folder / "cache", lambda stage, done: None)
        ).path

    path = asyncio.run(artifact())

    def load(**options: Any) -> Engine:
        slots = options.pop("slots", SLOTS)
        own = EXACT.get(runtime.name, {}) | options
        return runtime.load(Load(runtime.name, path, CONTEXT, slots, 2, 0, own), lambda fraction: None)

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

    def add(self, job: int, ids: Sequence[int], sampling: Sampling = GREEDY) -> None:
        self.tokens[job] = []
        self.engine.add(job, ids, sampling)

    def step(self) -> list[Token]:
        tokens = self.engine.step()
        for token in tokens:
            self.tokens[token.job].append(token)
        return tokens

    def finish(self) -> None:
        running = {job for job, tokens in self.tokens.items() if not (tokens and tokens[-1].finish)}
        while running:
            running -= {token.job for token in self.step() if token.finish}

    def text(self, job: int) -> bytes:
        return b"".join(token.text for token in self.tokens[job])


def answer(engine: Engine, text: str, sampling: Sampling = GREEDY) -> Jobs:
    jobs = Jobs(engine)
    jobs.add(0, engine.encode(text), sampling)
    jobs.finish()
    return jobs


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


def test_a_prefix_is_read_once_and_the_text_stays_the_same(engine: Engine) -> None:
    answer(engine, prompt("something else entirely"))
    story = prompt("Repeat: " + "river stone " * 20)
    first = answer(engine, story)
    again = answer(engine, story)
    assert again.tokens[0][0].cached == len(engine.encode(story)) - 1
    assert again.text(0) == first.text(0)


def test_a_prefix_is_shared_with_a_job_still_running(engine: Engine) -> None:
    story = engine.encode(prompt("Repeat: " + "paper silver " * 20))
    jobs = Jobs(engine)
    jobs.add(0, story, Sampling(max_tokens=60, temperature=0, ignore_eos=True))
    while not jobs.tokens[0]:
        jobs.step()
    jobs.add(1, story)
    jobs.finish()
    assert jobs.tokens[1][0].cached == len(story) - 1
    assert jobs.text(1) == jobs.text(0)[: len(jobs.text(1))]


def test_when_the_kv_cache_is_full_every_job_still_gets_its_whole_answer(build: Any) -> None:
    """Four jobs of up to 500 tokens in a cache of 512: some must be sent back and read again."""
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


def test_a_bias_bars_a_token(engine: Engine) -> None:
    first = answer(engine, prompt(QUESTIONS[0])).tokens[0][0].id
    barred = Sampling(max_tokens=24, temperature=0, logit_bias={first: -100.0})
    assert first not in [token.id for token in answer(engine, prompt(QUESTIONS[0]), barred).tokens[0]]


def test_a_bias_on_a_token_that_is_none_is_refused(engine: Engine) -> None:
    with pytest.raises(Refused) as refused:
        engine.add(0, [1], Sampling(logit_bias={engine.facts.vocabulary: 1.0}))
    assert refused.value.param == "logit_bias"


def test_a_repetition_penalty_counts_the_prompt_too(engine: Engine) -> None:
    question = prompt("Repeat: lemon lemon lemon")
    plain = answer(engine, question).text(0)
    punished = answer(engine, question, Sampling(max_tokens=24, temperature=0, repetition_penalty=100.0)).text(0)
    assert b"lemon" in plain
    assert b"lemon" not in punished


def test_a_presence_penalty_counts_generated_tokens_only(engine: Engine) -> None:
    question = prompt("Repeat: lemon river stone")
    punished = answer(engine, question, Sampling(max_tokens=3, temperature=0, presence_penalty=2.0)).text(0)
    assert punished == answer(engine, question, Sampling(max_tokens=3, temperature=0)).text(0)


def test_top_k_of_one_is_greedy_at_any_temperature(engine: Engine) -> None:
    wild = Sampling(max_tokens=24, temperature=2.0, top_k=1)
    assert answer(engine, prompt(QUESTIONS[1]), wild).text(0) == answer(engine, prompt(QUESTIONS[1])).text(0)
