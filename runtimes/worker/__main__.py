"""`python -m enginehouse.runtimes.worker`: one loaded model, one step loop. Talks to the server by stdin and stdout."""

import contextlib
import functools
import itertools
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO

from enginehouse.runtimes.contract import (
    Chat,
    Delta,
    Done,
    Engine,
    Logprob,
    Pieces,
    Prompt,
    PromptProgress,
    Sampling,
    Scored,
    Text,
    Token,
    Usage,
    check_tokens,
)
from enginehouse.runtimes.decoding import kv_cache
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import Refused, TooLong
from enginehouse.runtimes.worker.answer import Answer
from enginehouse.runtimes.worker.prompt import (
    check_features,
    check_length,
    check_prediction,
    encode,
    field_at_fault,
    prepare,
    remaining,
)
from enginehouse.runtimes.worker.protocol import (
    LENGTH_BYTES,
    Cancel,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Emit,
    Failure,
    Granted,
    Grow,
    LoadFailed,
    Loading,
    Ping,
    Pong,
    Ready,
    Refusal,
    Start,
    Submit,
    Tokenize,
    Tokenized,
    ToServer,
    ToWorker,
    decode_to_worker,
    frame,
)

MESSAGES_SECONDS = 0.005, 0.1  # at least and at most that messages are handled for between two steps
PIECES_SECONDS = 0.005  # the same for pieces of long work
PATIENCE_SECONDS = 0.25  # that long work waits while messages keep coming
PAUSE_SECONDS = 0.005  # between two looks at what is done elsewhere, while nothing else is to do
GRANT_SECONDS = 10.0  # that an engine waits for more memory
REST_SECONDS = 15.0  # without a message, after which what can wait is done
RESTING_SECONDS = 0.5  # between two such things
READING_SECONDS = 1.0  # between two words of how far those are of whom nothing else is heard
STEPS_SHARE, STEPS_SECONDS = 2.0, 1.0  # of the time that both took, they wait for steps; so long at most

Question = Submit | Embed | Tokenize | Detokenize


def main() -> None:
    out = os.dup(1)  # engines print to stdout as they like; it is stderr from here on
    os.dup2(2, 1)
    inbox, writing = Inbox(), threading.Lock()

    def send(message: ToServer) -> None:
        data = memoryview(frame(message))
        with writing:
            while data:
                data = data[os.write(out, data) :]

    threading.Thread(target=read, args=(sys.stdin.buffer, inbox, send), daemon=True).start()
    kv_cache.ask_for_memory = functools.partial(ask_for_memory, inbox, send, itertools.count())
    start = inbox.get()
    assert isinstance(start, Start)
    began = time.monotonic()
    try:
        runtime = runtimes()[start.load.runtime]
        engine = runtime.load(start.load, lambda fraction: send(Loading(fraction)))
    except Exception as error:  # the boundary: whatever an engine raises becomes one sentence
        needed = error.needed if isinstance(error, kv_cache.NoRoom) else 0
        send(LoadFailed(str(error) or type(error).__name__, needed))
        os._exit(1)
    send(Ready(engine.facts, time.monotonic() - began))
    loop = Loop(engine, inbox, send)
    try:
        loop.run()
    except Exception:  # the other boundary: an engine that failed in a step is not to be trusted with another
        print(f"it fails while it answers {', '.join(loop.request_ids) or 'nobody'}", file=sys.stderr)
        traceback.print_exc()
        os._exit(1)  # not by way of the interpreter's end, which aborts while a thread reads stdin


def read(pipe: BinaryIO, inbox: "Inbox", send: Callable[[ToServer], None]) -> None:
    """Messages from the server, in a thread, so that a closed pipe ends this process whatever it is doing."""
    try:
        while header := pipe.read(LENGTH_BYTES):
            message = decode_to_worker(pipe.read(int.from_bytes(header, "little")))
            if isinstance(message, Ping):
                send(Pong(inbox.turns, inbox.busy))
            elif isinstance(message, Granted):
                inbox.grants.put(message)
            else:
                inbox.put(message)
    except BaseException:  # a worker that hears nothing more must not stay
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # the server is gone, or wants no more


def ask_for_memory(inbox: "Inbox", send: Callable[[ToServer], None], asks: Iterator[int], bytes: int) -> bool:
    """Whether the server grants so much more; the engine waits for that, as idle models may have to leave for it."""
    ask = next(asks)
    send(Grow(ask, bytes))
    with contextlib.suppress(queue.Empty):
        while (answer := inbox.grants.get(timeout=GRANT_SECONDS)).ask != ask:  # one that was given up
            pass
        return answer.granted
    return False


class Inbox:
    """What came from the server and was not looked at yet, and how the loop gets on with it."""

    def __init__(self) -> None:
        self.busy = True  # the loop does not wait for a message
        self.turns = 0  # that the loop has taken
        self.cancelled: set[int] = set()  # jobs whose Cancel has come, though it was not looked at yet
        self.grants: queue.SimpleQueue[Granted] = queue.SimpleQueue()
        self._messages: deque[ToWorker] = deque()
        self._arrived = threading.Event()

    def put(self, message: ToWorker) -> None:
        if isinstance(message, Cancel):
            self.cancelled.add(message.job)
        self._messages.append(message)
        self._arrived.set()

    def waiting(self) -> bool:
        return bool(self._messages)

    def pause(self) -> None:
        """Until something comes, but for a moment only."""
        self._arrived.clear()
        if not self._messages:
            self._arrived.wait(PAUSE_SECONDS)

    def comes(self, seconds: float) -> bool:
        """Whether something does within that time."""
        self.busy = False
        while not self._messages and self._arrived.wait(seconds):
            self._arrived.clear()
        self.busy = True
        return bool(self._messages)

    def get(self) -> ToWorker:
        while not self._messages:
            self.busy = False
            self._arrived.wait()
            self._arrived.clear()
        self.busy = True
        return self._messages.popleft()


class Loop:
    """Reads what came, advances every answer by one step, sends what that brought."""

    def __init__(self, engine: Engine, inbox: Inbox, send: Callable[[ToServer], None]) -> None:
        self._engine, self._inbox, self._send = engine, inbox, send
        self._answers: dict[int, Answer] = {}
        self._unfinished: dict[int, tuple[Question, Pieces[None]]] = {}  # the first is gone on with between steps
        self._went_on = 0.0  # when last
        self._step_seconds = 0.0  # of the last step
        self._reported = 0.0  # when last it was said how far prompts are read
        self._waiting: dict[int, tuple[Question, Pieces[None]]] = {}  # while something is done for them elsewhere

    @property
    def request_ids(self) -> list[str]:
        """Of those that are answered."""
        return [answer.request_id for answer in self._answers.values()]

    def run(self) -> None:
        while True:
            began = time.monotonic()
            if self._inbox.waiting() or not (self._answers or self._unfinished or self._waiting):
                self._rest()
                self._handle_messages()
            if not self._inbox.waiting() or began > self._went_on + PATIENCE_SECONDS:
                self._go_on()
            self._step(time.monotonic() - began)

    def _rest(self) -> None:
        """While nobody asks, what can wait is done, a thing at a time."""
        seconds = REST_SECONDS
        while not self._inbox.waiting() and not self._inbox.comes(seconds) and self._engine.rest():
            seconds = RESTING_SECONDS

    def _handle_messages(self) -> None:
        """At least one, and more for half as long as a step takes: the rest waits for the next turn."""
        least, most = MESSAGES_SECONDS
        until = time.monotonic() + min(max(least, self._step_seconds / 2), most)
        self._handle(self._inbox.get())
        while self._inbox.waiting() and time.monotonic() < until:
            self._handle(self._inbox.get())

    def _go_on(self) -> None:
        """A look at what waits, then at least one piece of the long work that came first, if there is any."""
        self._went_on = time.monotonic()
        for job in list(self._waiting):
            self._unfinished[job] = self._waiting.pop(job)  # behind the others, whose pieces may be under way
            self._take_piece(job)
        until = self._went_on + PIECES_SECONDS
        while self._unfinished:
            self._take_piece(next(iter(self._unfinished)))
            if time.monotonic() >= until:
                return
        if self._waiting and not self._answers:
            self._inbox.pause()

    def _step(self, spent: float) -> None:
        """At least one step, and more for longer than was spent on other things: whoever asks much of a model takes
        less than half the speed of its answers."""
        until = time.monotonic() + min(STEPS_SHARE * spent, STEPS_SECONDS)
        while self._answers:
            began = time.monotonic()
            self._emit(self._engine.step())
            self._inbox.turns += 1
            now = time.monotonic()
            self._step_seconds = now - began
            if now >= until:
                return

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Submit(job) | Embed(job) | Tokenize(job) | Detokenize(job) if job in self._inbox.cancelled:
                return
            case Submit() | Embed() | Tokenize() | Detokenize():
                self._unfinished[message.job] = message, self._serve(message)
                self._take_piece(message.job)
            case Cancel():
                self._engine.remove(message.job)
                self._answers.pop(message.job, None)
                self._unfinished.pop(message.job, None)
                self._waiting.pop(message.job, None)
                self._inbox.cancelled.discard(message.job)

    def _take_piece(self, job: int) -> None:
        question, pieces = self._unfinished[job]
        if job in self._inbox.cancelled:
            del self._unfinished[job]
            pieces.close()
            return
        self._inbox.turns += 1
        try:
            if next(pieces):
                self._waiting[job] = self._unfinished.pop(job)
        except StopIteration:
            del self._unfinished[job]
        except Refused as error:
            del self._unfinished[job]
            size = (error.context, error.tokens, error.at_least) if isinstance(error, TooLong) else ()
            self._send(Refusal(job, error.message, field_at_fault(error, question), error.code, *size))

    def _serve(self, message: Question) -> Pieces[None]:
        """What takes an engine's pieces yields once before them, for those of another question may be under way."""
        match message:
            case Submit():
                yield from self._admit(message)
            case Embed():
                yield from self._embed(message)
            case Tokenize(job, prompt):
                ids, _, _ = prepare(self._engine, prompt, Sampling())
                self._send(Tokenized(job, ids))
            case Detokenize(job, ids):
                check_tokens(ids, Sampling(), self._engine.facts.vocabulary)
                self._send(Detokenized(job, self._text(ids)))

    def _admit(self, submit: Submit) -> Pieces[None]:
        ids, output, sampling = prepare(self._engine, submit.prompt, submit.sampling)
        check_features(sampling, self._engine.facts, submit.echo)
        check_length(len(ids), self._engine.facts.context_length)
        check_prediction(sampling.prediction, self._engine.facts)
        answer = Answer(len(ids), output, not isinstance(submit.prompt, Chat), submit.request_id)
        for token in submit.generated:
            answer.take(Token(submit.job, token, self._engine.text(token)))  # the client has had these deltas
        if submit.echo or sampling.max_tokens == 0:  # else `add` does so
            check_tokens(ids, sampling, self._engine.facts.vocabulary)
        if sampling.constraint and sampling.max_tokens != 0:
            yield from self._engine.make_ready(sampling.constraint)
        admitted = [(submit.job, PromptProgress(len(ids)))]
        echo = []
        if submit.echo:
            if sampling.logprobs is not None:  # which takes as long as reading the prompt
                self._send(Emit([], [], [], admitted))
                admitted = []
            delta = yield from self._echo(submit.prompt, ids, sampling.logprobs)
            echo = [(submit.job, delta)]
        if sampling.max_tokens == 0:
            dones = [(submit.job, Done("length", Usage(len(ids), 0)))]
        else:
            left = remaining(sampling, len(submit.generated))
            self._engine.add(submit.job, [*ids, *submit.generated], left, submit.priority)
            self._answers[submit.job] = answer
            dones = []
        self._send(Emit([], echo, dones, admitted))

    def _echo(self, prompt: Prompt, ids: list[int], top: int | None) -> Pieces[Delta]:
        text = prompt.text if isinstance(prompt, Text) else self._text(ids)
        if top is None:
            return Delta(text)
        first = Logprob(Scored(ids[0], self._engine.text(ids[0]), 0.0), first=True)
        yield
        scores = yield from self._engine.score(ids, top)
        return Delta(text, logprobs=[first, *scores])

    def _text(self, ids: list[int]) -> str:
        return b"".join(map(self._engine.text, ids)).decode("utf-8", "replace")

    def _embed(self, message: Embed) -> Pieces[None]:
        facts = self._engine.facts
        if "embeddings" not in facts.features:
            raise Refused("this model's engine makes no embeddings", "model", "unsupported_parameter")
        texts = []
        for given in message.texts:
            texts.append(ids := encode(self._engine, given) if isinstance(given, str) else given)
            check_tokens(ids, Sampling(), facts.vocabulary)
            check_length(len(ids), facts.context_length, answered=False)
            yield
        vectors = []
        for ids in texts:
            vector = yield from self._engine.embed(ids, message.pooling)
            vectors.append(vector)
        self._send(Embedded(message.job, vectors, sum(map(len, texts))))

    def _emit(self, tokens: list[Token]) -> None:
        emit = Emit([(token.job, token.id) for token in tokens if token.id >= 0], [], [], self._progress_of_prompts())
        for token in tokens:
            if token.job not in self._answers:
                continue  # it ended within this step
            if token.failure:
                del self._answers[token.job]
                self._send(Failure(token.job, token.failure))
                continue
            answer = self._answers[token.job]
            if not answer.first:
                emit.progress.append((token.job, answer.progress((answer.prompt_tokens, token.cached), token.tier)))
            deltas = answer.take(token)
            finish = token.finish
            if answer.output.stopped and not finish:
                self._engine.remove(token.job)
                finish = "stop"
            if finish:
                finish = "stop" if answer.output.stopped else finish
                deltas += answer.end()
                emit.dones.append((token.job, answer.done(finish)))
                del self._answers[token.job]
            emit.deltas.extend((token.job, delta) for delta in deltas)
        if tokens or emit.progress:
            self._send(emit)

    def _progress_of_prompts(self) -> list[tuple[int, PromptProgress]]:
        """Once in a while, of those who have said nothing for as long: because their prompt is read, or a call that
        comes whole is written."""
        now = time.monotonic()
        if now < self._reported + READING_SECONDS:
            return []
        self._reported = now
        quiet = [(job, one) for job, one in self._answers.items() if now >= one.spoke + READING_SECONDS]
        return [
            (job, one.progress(read))
            for job, one in quiet
            if (read := (one.prompt_tokens, one.cached_tokens) if one.first else self._engine.read(job))
        ]


if __name__ == "__main__":
    main()
