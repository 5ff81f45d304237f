"""`python -m enginehouse.runtimes.worker`: one loaded model, one step loop. Talks to the server by stdin and stdout."""

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO

import msgspec

from enginehouse.runtimes.contract import (
    Chat,
    Delta,
    Done,
    Engine,
    Facts,
    Ids,
    JsonSchema,
    Logprob,
    Prompt,
    Sampling,
    Scored,
    Structured,
    Text,
    Token,
    Usage,
    asked_for,
    check_tokens,
)
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import Refused, too_long
from enginehouse.runtimes.structure import JsonValue
from enginehouse.runtimes.tool_calls import parsers
from enginehouse.runtimes.tool_calls.parser import ParseOptions, Tool
from enginehouse.runtimes.worker import prompt as chat
from enginehouse.runtimes.worker.answer import Output
from enginehouse.runtimes.worker.protocol import (
    LENGTH_BYTES,
    Cancel,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Emit,
    Failure,
    LoadFailed,
    Loading,
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


def main() -> None:
    out = os.dup(1)  # engines print to stdout as they like; it is stderr from here on
    os.dup2(2, 1)
    inbox = Inbox(sys.stdin.buffer)

    def send(message: ToServer) -> None:
        data = memoryview(frame(message))
        while data:
            data = data[os.write(out, data) :]

    start = inbox.get()
    assert isinstance(start, Start)
    began = time.monotonic()
    try:
        runtime = runtimes()[start.load.runtime]
        engine = runtime.load(start.load, lambda fraction: send(Loading(fraction)))
    except Exception as error:  # the boundary: whatever an engine raises becomes one sentence
        send(LoadFailed(str(error) or type(error).__name__))
        os._exit(1)
    send(Ready(engine.facts, time.monotonic() - began))
    try:
        Loop(engine, inbox, send).run()
    except Exception:  # the other boundary: an engine that failed in a step is not to be trusted with another
        traceback.print_exc()
        os._exit(1)  # not by way of the interpreter's end, which aborts while a thread reads stdin


class Inbox:
    """Messages from the server, read by a thread so that a closed pipe ends this process whatever it is doing."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._messages: deque[ToWorker] = deque()
        self._arrived = threading.Event()
        threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def _read(self, pipe: BinaryIO) -> None:
        while header := pipe.read(LENGTH_BYTES):
            body = pipe.read(int.from_bytes(header, "little"))
            self._messages.append(decode_to_worker(body))
            self._arrived.set()
        os._exit(0)  # the server is gone, or wants no more

    def waiting(self) -> bool:
        return bool(self._messages)

    def get(self) -> ToWorker:
        while not self._messages:
            self._arrived.wait()
            self._arrived.clear()
        return self._messages.popleft()


class Answer:
    """One job under way."""

    def __init__(self, prompt_tokens: int, output: Output, scores_end: bool) -> None:
        self.output = output
        self.scores_end = scores_end  # the token that ends the answer is among the log-probabilities
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = self.reasoning_tokens = self.cached_tokens = 0
        self.started = time.monotonic()
        self.first = 0.0
        self.logprobs: list[Logprob] = []  # of tokens whose delta has not come yet

    def take(self, token: Token) -> list[Delta]:
        if not self.first:
            self.first, self.cached_tokens = time.monotonic(), token.cached
        deltas = self.output.feed(token.text)
        if token.logprob is not None and (token.id >= 0 or self.scores_end):
            self.logprobs.append(Logprob(Scored(token.id, token.text, token.logprob), token.top))
        if token.id >= 0:
            self.completion_tokens += 1
            self.reasoning_tokens += self.output.reasoned
        return deltas

    def with_logprobs(self, deltas: list[Delta], last: bool) -> list[Delta]:
        if self.logprobs and (deltas or last):
            first, *rest = deltas or [Delta()]
            deltas = [msgspec.structs.replace(first, logprobs=self.logprobs), *rest]
            self.logprobs = []
        return deltas

    def done(self, finish: str) -> Done:
        usage = Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens)
        reason = "tool_calls" if finish == "stop" and self.output.called else finish
        return Done(reason, usage, self.first - self.started, time.monotonic() - self.first, self.output.stopped)


class Loop:
    def __init__(self, engine: Engine, inbox: Inbox, send: Callable[[ToServer], None]) -> None:
        self._engine, self._inbox, self._send = engine, inbox, send
        self._answers: dict[int, Answer] = {}
        self._parser = parsers.parser_of(engine.facts.chat_template)

    def run(self) -> None:
        while True:
            while self._inbox.waiting() or not self._answers:
                self._obey(self._inbox.get())
            self._emit(self._engine.step())

    def _obey(self, message: ToWorker) -> None:
        match message:
            case Submit() | Embed() | Tokenize() | Detokenize():
                try:
                    self._serve(message)
                except Refused as error:
                    self._send(Refusal(message.job, error.message, named(error, message), error.code))
            case Cancel():
                self._engine.remove(message.job)
                self._answers.pop(message.job, None)

    def _serve(self, message: Submit | Embed | Tokenize | Detokenize) -> None:
        match message:
            case Submit():
                self._admit(message)
            case Embed():
                self._embed(message)
            case Tokenize(job, prompt):
                ids, _, _ = self._prepared(prompt, Sampling())
                self._send(Tokenized(job, ids))
            case Detokenize(job, ids):
                check_tokens(ids, Sampling(), self._engine.facts.vocabulary)
                self._send(Detokenized(job, self._text(ids)))

    def _admit(self, submit: Submit) -> None:
        ids, output, sampling = self._prepared(submit.prompt, submit.sampling)
        check_features(sampling, self._engine.facts, submit.echo)
        check_length(len(ids), submit.sampling, self._engine.facts.context_length)
        answer = Answer(len(ids), output, scores_end=not isinstance(submit.prompt, Chat))
        for token in submit.said:
            answer.take(Token(submit.job, token, self._engine.text(token)))  # the client has had these deltas
        if sampling.max_tokens == 0:
            check_tokens(ids, sampling, self._engine.facts.vocabulary)
            dones = [(submit.job, Done("length", Usage(len(ids), 0)))]
        else:
            self._engine.add(submit.job, [*ids, *submit.said], after(sampling, len(submit.said)))
            self._answers[submit.job] = answer
            dones = []
        if submit.echo or dones:
            echo = [(submit.job, self._echo(submit.prompt, ids, sampling.logprobs))] if submit.echo else []
            self._send(Emit([], echo, dones))

    def _echo(self, prompt: Prompt, ids: list[int], top: int | None) -> Delta:
        text = prompt.text if isinstance(prompt, Text) else self._text(ids)
        if top is None:
            return Delta(text)
        first = Logprob(Scored(ids[0], self._engine.text(ids[0]), 0.0), first=True)
        return Delta(text, logprobs=[first, *self._engine.score(ids, top)])

    def _text(self, ids: list[int]) -> str:
        return b"".join(map(self._engine.text, ids)).decode("utf-8", "replace")

    def _prepared(self, prompt: Prompt, sampling: Sampling) -> tuple[list[int], Output, Sampling]:
        """The prompt's token ids, what will take its answer apart, and the sampling with what tools ask of it."""
        if not isinstance(prompt, Chat):
            ids = prompt.ids if isinstance(prompt, Ids) else self._encoded(prompt)
            return ids, Output(sampling.stop), sampling
        text = chat.render(self._engine.facts, prompt.messages, prompt.tools, prompt.template_options, prompt.effort)
        parser, (begin, end) = self._parser, self._parser.thought
        begun = chat.begun(prompt.messages)
        thinking = bool(begin) and (text.rstrip().endswith(begin) or begun.rfind(begin) > begun.rfind(end))
        reasoning = bool(begin) and begin in (self._engine.facts.chat_template or "")
        options = ParseOptions(
            tuple(tool_of(tool, prompt) for tool in prompt.tools or ()),
            prompt.call_required,
            prompt.parallel_calls,
            reasoning=reasoning and (thinking or not begun),
            thinking=thinking,
            content=content_of(sampling),
        )
        if options.tools:
            if sampling.constraint and not options.content:
                raise Refused("of all constraints only a JSON schema can stand beside 'tools'", "response_format")
            allowed = tuple(tool for tool in options.tools if prompt.call_name in ("", tool.name))
            structured = Structured(parser.structure(msgspec.structs.replace(options, tools=allowed)))
            sampling = msgspec.structs.replace(sampling, constraint=structured)
        elif options.content and (options.thinking or not begin):  # only what comes after the thought is held to it
            sampling = msgspec.structs.replace(
                sampling, constraint=Structured(parser.structure(options), "response_format")
            )
        return self._engine.encode(text), Output(sampling.stop, lambda scanner: parser.read(scanner, options)), sampling

    def _encoded(self, prompt: Text) -> list[int]:
        ids, bos = self._engine.encode(prompt.text), self._engine.facts.bos
        dressed = bos and not prompt.text.startswith(bos)
        return ids[1:] if dressed and not prompt.special else ids

    def _embed(self, message: Embed) -> None:
        facts = self._engine.facts
        if "embeddings" not in facts.features:
            raise Refused("this model's engine makes no embeddings", "model", "unsupported_parameter")
        ids = [self._engine.encode(text) if isinstance(text, str) else text for text in message.texts]
        for text in ids:
            check_tokens(text, Sampling(), facts.vocabulary)
            check_length(len(text), Sampling(), facts.context_length + 1)
        vectors = self._engine.embed(ids, message.pooling)
        self._send(Embedded(message.job, vectors, sum(map(len, ids))))

    def _emit(self, tokens: list[Token]) -> None:
        emit = Emit([(token.job, token.id) for token in tokens if token.id >= 0], [], [])
        for token in tokens:
            if token.failure:
                del self._answers[token.job]
                self._send(Failure(token.job, token.failure))
                continue
            answer = self._answers[token.job]
            deltas = answer.take(token)
            finish = token.finish
            if answer.output.stopped and not finish:
                self._engine.remove(token.job)
                finish = "stop"
            if finish:
                finish = "stop" if answer.output.stopped else finish
                deltas += answer.output.end()
                emit.dones.append((token.job, answer.done(finish)))
                del self._answers[token.job]
            deltas = answer.with_logprobs(deltas, bool(finish))
            emit.deltas.extend((token.job, delta) for delta in deltas)
        if tokens:
            self._send(emit)


def named(error: Refused, message: Submit | Embed | Tokenize | Detokenize) -> str | None:
    """The field at fault as its client knows it: engines say 'messages' of every prompt."""
    if error.param != "messages":
        return error.param
    match message:
        case Submit(prompt=Chat()) | Tokenize(prompt=Chat()):
            return "messages"
        case Submit() | Tokenize():
            return "prompt"
        case Embed():
            return "input"
        case Detokenize():
            return "tokens"


MORE_PROPERTIES = {"anyOf", "oneOf", "allOf", "patternProperties", "$ref"}  # where a schema may name them elsewhere


def tool_of(tool: dict[str, Any], prompt: Chat) -> Tool:
    """Arguments are enforced where a call is, or where that is asked for; else as far as the engine can."""
    function = tool["function"]
    strict = function.get("strict")
    must = strict or (prompt.call_required and strict is None)
    schema = {"type": "object"} | (function.get("parameters") or {"properties": {}})
    if "properties" in schema and not schema.keys() & MORE_PROPERTIES:  # other names than these help nobody
        schema = {"additionalProperties": False} | schema
    return Tool(function["name"], JsonValue(msgspec.json.encode(schema).decode(), must))


def content_of(sampling: Sampling) -> JsonValue | None:
    return JsonValue(sampling.constraint.schema, must=True) if isinstance(sampling.constraint, JsonSchema) else None


def check_features(sampling: Sampling, facts: Facts, echo: bool = False) -> None:
    """Refuses by name what this engine does not honour; stop strings are this process's own doing."""
    for feature, param in asked_for(sampling, echo):
        if feature not in facts.features:
            raise Refused(f"'{feature}' is not honoured by this model's engine", param, "unsupported_parameter")


def after(sampling: Sampling, said: int) -> Sampling:
    """What is left to ask for once so many tokens were said."""
    limit = sampling.max_tokens - said if sampling.max_tokens else None
    return msgspec.structs.replace(sampling, max_tokens=limit, min_tokens=max(0, sampling.min_tokens - said))


def check_length(prompt_tokens: int, sampling: Sampling, context: int) -> None:
    if sampling.max_tokens and sampling.max_tokens > context:
        raise Refused(
            f"max_tokens {sampling.max_tokens} is more than this model's context of {context} tokens", "max_tokens"
        )
    if prompt_tokens >= context:
        raise too_long(context, f"{prompt_tokens}")


if __name__ == "__main__":
    main()
