"""The worker's loop: what waits for what."""

from collections.abc import Callable

from enginehouse.runtimes.contract import Chat, Load, Sampling, Text
from enginehouse.runtimes.engines.echo import Echo
from enginehouse.runtimes.worker.__main__ import Inbox, Loop
from enginehouse.runtimes.worker.protocol import Emit, Submit, Tokenize, Tokenized, ToServer, ToWorker

CONTEXT = 1 << 20


class Enough(Exception):
    """All was seen that a test waits for."""


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
