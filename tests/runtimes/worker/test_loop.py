"""The worker's loop: what waits for what."""

import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import pytest

from enginehouse.optimize.sources import chat_template
from enginehouse.runtimes.contract import (
    JSON_OBJECT,
    WAITING,
    Chat,
    Constraint,
    Load,
    Logprob,
    Pieces,
    Pooling,
    Prompt,
    PromptProgress,
    Sampling,
    Scored,
    Text,
)
from enginehouse.runtimes.engines.echo import Echo
from enginehouse.runtimes.worker.__main__ import Inbox, Loop
from enginehouse.runtimes.worker.protocol import (
    Cancel,
    Embed,
    Embedded,
    Emit,
    Refusal,
    Submit,
    Tokenize,
    Tokenized,
    ToServer,
    ToWorker,
)

CONTEXT = 1 << 20


class Enough(Exception):
    """All was seen that a test waits for."""


class Special(Echo):
    """Tokenizes in so much time that nobody may ask it to do so with what does not fit."""

    def __init__(self, context: int) -> None:
        super().__init__(Load("echo", "", context, 4, 1, 0))
        special = ("<|im_end|>", *(f"<unused{n}>" for n in range(6000)), "<unused1>more")
        self.facts = msgspec.structs.replace(self.facts, longest_token=20, special_tokens=special)
        self.encoded = 0

    def encode(self, text: str) -> list[int]:
        self.encoded += len(text)
        return [0] * (text.count("<") + 1)


class Embedding(Echo):
    """Takes a piece for each token."""

    def __init__(self) -> None:
        super().__init__(Load("echo", "", CONTEXT, 4, 1, 0))
        features = ("max_tokens", "logprobs", "embeddings", "prompt_logprobs")
        self.facts = msgspec.structs.replace(self.facts, features=features)
        self.pieces = 0

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        for _ in ids:
            self._work()
            yield
        return [1.0]

    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]:
        for _ in ids[1:]:
            self._work()
            yield
        return [Logprob(Scored(id, self.text(id), -1.0)) for id in ids[1:]]

    def _work(self) -> None:
        self.pieces += 1
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            pass


def echo(context: int = CONTEXT) -> Echo:
    return Echo(Load("echo", "", context, 4, 1, 0))


def chat(job: int, text: str) -> Submit:
    return Submit(job, Chat([{"role": "user", "content": text}]), Sampling())


def replies(engine: Echo, messages: list[ToWorker], enough: Callable[[list[ToServer]], bool]) -> list[ToServer]:
    """What the loop answers to messages that are all there when it begins, until that is enough."""
    inbox, sent = Inbox(), list[ToServer]()
    for message in messages:
        inbox.put(message)

    def send(message: ToServer) -> None:
        sent.append(message)
        if enough(sent):
            raise Enough

    try:
        Loop(engine, inbox, send).run()
    except Enough:
        return sent
    raise AssertionError("the loop ended")


def count(sent: list[ToServer], kind: type) -> int:
    return sum(isinstance(message, kind) for message in sent)


def finished(sent: list[ToServer], job: int) -> bool:
    return any(isinstance(message, Emit) and job in dict(message.dones) for message in sent)


def test_an_answer_goes_on_while_messages_keep_coming() -> None:
    long = Text("hello world, this is " * 15_000)
    questions = [Tokenize(number, long) for number in range(1, 61)]
    sent = replies(
        echo(),
        [chat(0, "a short answer"), *questions],
        lambda sent: finished(sent, 0) or count(sent, Tokenized) == len(questions),
    )
    assert count(sent, Tokenized) < len(questions) // 2


@pytest.mark.parametrize(
    "text", ["hello world, " * 1000, " " * 9 * (1 << 20), "<|im_end|>" * 201, "<unused1>more<" * 201]
)
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(text: str) -> None:
    chat_prompt = Chat([{"role": "user", "content": text}])
    prompts: list[Prompt] = [Text(text), chat_prompt]
    asked: list[ToWorker] = [
        *[Submit(job, prompt, Sampling()) for job, prompt in enumerate(prompts)],
        *[Tokenize(job + 2, prompt) for job, prompt in enumerate(prompts)],
    ]
    engine = Special(context=200)
    sent = replies(engine, asked, lambda sent: len(sent) == len(asked))
    refusals = [message for message in sent if isinstance(message, Refusal)]
    assert [refusal.code for refusal in refusals] == ["context_length_exceeded"] * len(asked)
    assert engine.encoded == 0


def test_a_prompt_that_just_fits_is_not_refused_for_its_letters() -> None:
    engine = Special(context=200)
    sent = replies(
        engine, [Tokenize(0, Text("x" * 4000)), Tokenize(1, Text("<unused7>" * 200))], lambda sent: len(sent) == 2
    )
    assert count(sent, Tokenized) == 2


def test_letters_that_begin_like_thousands_of_special_tokens_are_counted_in_no_time() -> None:
    engine = Special(context=1 << 20)
    began = time.monotonic()
    replies(engine, [Tokenize(0, Text("<unused" * 100_000))], lambda sent: len(sent) == 1)
    assert time.monotonic() - began < 1


LONG_WORK = [
    Embed(0, ["some text of thirty letters..."] * 30, "mean"),
    Submit(0, Text("some text of thirty letters..." * 30), Sampling(max_tokens=0, logprobs=0), echo=True),
]


@pytest.mark.parametrize("question", LONG_WORK)
def test_an_answer_goes_on_while_texts_are_embedded_or_scored(question: ToWorker) -> None:
    sent = replies(Embedding(), [question, chat(1, "a short answer")], lambda sent: finished(sent, 1))
    assert not count(sent, Embedded)
    assert not finished(sent, 0)


@pytest.mark.parametrize("question", LONG_WORK)
def test_texts_are_embedded_or_scored_no_further_once_their_client_has_left(question: ToWorker) -> None:
    engine = Embedding()
    sent = replies(engine, [question, Cancel(0), chat(1, "a short answer")], lambda sent: finished(sent, 1))
    assert engine.pieces == 0
    assert not count(sent, Embedded)


def test_a_text_is_embedded_to_its_end_before_the_next_question_is() -> None:
    asked: list[ToWorker] = [Embed(job, ["ab", [1, 2, 3]], "mean") for job in range(3)]
    sent = replies(Embedding(), asked, lambda sent: len(sent) == 3)
    assert sent == [Embedded(job, [[1.0], [1.0]], 5) for job in range(3)]


def test_the_scores_of_a_prompt_come_before_its_answer() -> None:
    asked = Submit(0, Text("abc"), Sampling(logprobs=0), echo=True)
    admitted, first, *_ = replies(Embedding(), [asked], lambda sent: finished(sent, 0))
    assert admitted == Emit([], [], [], [(0, PromptProgress(3))])  # its client is told before they are computed
    assert isinstance(first, Emit)
    ((_, delta),) = first.deltas
    assert (delta.text, [one.token.logprob for one in delta.logprobs]) == ("abc", [0.0, -1.0, -1.0])


def test_while_a_call_that_comes_whole_is_written_it_is_said_that_the_answer_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("enginehouse.runtimes.worker.__main__.READING_SECONDS", 0.05)
    engine = Echo(Load("echo", "", CONTEXT, 4, 1, 0, {"decode_rate": 1000.0}))
    template = (
        "{# <tool_call><function=<parameter= #}{{ messages[-1].content }}"  # qwen-xml, whose arguments are no JSON
    )
    engine.facts = msgspec.structs.replace(engine.facts, chat_template=template)
    arguments = f"<parameter=text>\n{'a' * 300}\n</parameter>"
    said = f"<tool_call>\n<function=note>\n{arguments}\n</function>\n</tool_call>"
    note = {"type": "function", "function": {"name": "note", "parameters": {"type": "object"}}}
    asked = Submit(0, Chat([{"role": "user", "content": said}], tools=[note]), Sampling())
    sent = [one for one in replies(engine, [asked], lambda sent: finished(sent, 0)) if isinstance(one, Emit)]
    assert {one.progress[0][1].read for one in sent[2:] if one.progress} == {len(said)}


def test_more_messages_than_the_context_has_tokens_are_not_even_rendered() -> None:
    engine = Special(context=200)
    many = Chat([{"role": "user", "content": "a"}] * 201)
    (sent,) = replies(engine, [Submit(0, many, Sampling())], lambda sent: True)
    assert isinstance(sent, Refusal)
    assert sent.code == "context_length_exceeded"


def test_who_asks_after_a_client_with_many_long_questions_does_not_wait_for_all_of_them() -> None:
    engine = Embedding()
    scored = [
        Submit(job, Text("some text of thirty letters..."), Sampling(max_tokens=0, logprobs=0), echo=True)
        for job in range(1, 41)
    ]
    replies(engine, [*scored, chat(0, "a short answer")], lambda sent: finished(sent, 0))
    assert engine.pieces < 10 * 30


def test_questions_whose_client_has_left_are_not_even_read() -> None:
    engine = Special(context=200)
    asked: list[ToWorker] = [Tokenize(job, Text("a")) for job in range(9)]
    sent = replies(engine, [*asked, *map(Cancel, range(8))], lambda sent: len(sent) == 1)
    assert isinstance(sent[0], Tokenized)
    assert (sent[0].job, engine.encoded) == (8, 1)


def test_a_template_without_end_refuses_its_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.1)
    engine = Special(context=200)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    engine.facts = msgspec.structs.replace(engine.facts, chat_template=loops)
    (sent,) = replies(engine, [chat(0, "hi")], lambda sent: True)
    assert isinstance(sent, Refusal)
    assert "did not come to its end within 0.1 s" in sent.message


class Compiling(Echo):
    """Makes each constraint ready for ever; until it is given up."""

    def __init__(self) -> None:
        super().__init__(Load("echo", "", CONTEXT, 4, 1, 0))
        features = ("max_tokens", "json_schema", "embeddings")
        self.facts = msgspec.structs.replace(self.facts, features=features)
        self.looks, self.given_up = 0, 0

    def make_ready(self, constraint: Constraint) -> Pieces[None]:
        try:
            while True:
                self.looks += 1
                yield WAITING
        finally:
            self.given_up += 1

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        for _ in ids:
            yield
        return [1.0]


HELD = Submit(0, Chat([{"role": "user", "content": "a"}]), Sampling(constraint=JSON_OBJECT))


def test_who_waits_for_a_constraint_holds_up_nobody_and_can_leave() -> None:
    engine = Compiling()
    others: list[ToWorker] = [Embed(1, ["hello " * 50], "mean"), chat(2, "a short answer")]
    sent = replies(engine, [HELD, *others], lambda sent: finished(sent, 2) and count(sent, Embedded) == 1)
    assert not finished(sent, 0)


def test_a_constraint_is_given_up_when_its_client_leaves() -> None:
    engine, inbox = Compiling(), Inbox()
    inbox.put(HELD)

    def leave() -> None:
        inbox.put(Cancel(0))
        inbox.put(chat(1, "it is enough"))

    threading.Timer(0.1, leave).start()

    def send(message: ToServer) -> None:
        raise Enough

    with pytest.raises(Enough):
        Loop(engine, inbox, send).run()
    assert engine.given_up == 1


def test_the_loop_rests_while_all_wait_for_constraints() -> None:
    engine, inbox = Compiling(), Inbox()
    inbox.put(HELD)
    threading.Timer(1, inbox.put, [chat(1, "it is enough")]).start()

    def send(message: ToServer) -> None:
        raise Enough

    began = time.thread_time()
    with pytest.raises(Enough):
        Loop(engine, inbox, send).run()
    assert engine.looks > 1
    assert time.thread_time() - began < 0.5
