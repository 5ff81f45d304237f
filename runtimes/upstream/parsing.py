"""Thoughts and calls in the text of an upstream that leaves them there, taken out as they are for engines here."""

from collections.abc import Iterator

import msgspec

from enginehouse.runtimes.contract import Chat, Delta, Done, Job, Logprob
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.tool_calls.parser import ParseOptions, ToolParser
from enginehouse.runtimes.tool_calls.parsers import parsers
from enginehouse.runtimes.worker.answer import OutputParser
from enginehouse.runtimes.worker.prompt import named, tool_of


def parser_named(name: str | None) -> ToolParser | None:
    return parsers()[name] if name else None


def check(job: Job) -> None:
    """Raises Refused for what cannot be enforced where an answer is only read."""
    chat = job.prompt
    if not isinstance(chat, Chat) or not chat.tools:
        return
    why = "cannot be enforced of an upstream whose calls are read from its text ('upstream.parser')"
    if chat.call_required:
        raise Refused(f"'tool_choice': a call {why}", "tool_choice", "unsupported_parameter")
    if not chat.parallel_calls:
        raise Refused(f"'parallel_tool_calls': false {why}", "parallel_tool_calls", "unsupported_parameter")
    if job.sampling.constraint:
        raise Refused(f"'response_format' beside 'tools' {why}", "response_format", "unsupported_parameter")


def chat_for(chat: Chat, parser: ToolParser) -> Chat:
    """As it is sent: where the upstream knows no tools, they stand in its system message."""
    if parser.knows_tools:
        return chat
    tools = chat.tools or []
    return msgspec.structs.replace(chat, messages=parser.prepare(named(chat.messages), tools, ""), tools=None)


class Parsing:
    """One answer's text as it comes."""

    def __init__(self, job: Job, parser: ToolParser) -> None:
        assert isinstance(job.prompt, Chat)
        tools = tuple(tool_of(tool, job.prompt) for tool in job.prompt.tools or ())
        options = ParseOptions(tools, reasoning=bool(parser.thought[0]))
        self._output = OutputParser((), lambda scanner: parser.read(scanner, options))

    def take(self, delta: Delta) -> Iterator[Delta]:
        """What it takes apart itself passes as it is."""
        if delta.reasoning or delta.tool_call:
            yield delta
            return
        pieces: list[tuple[bytes, Logprob | None]] = [(one.token.text, one) for one in delta.logprobs]
        pieces = pieces or [(delta.text.encode(), None)]
        for piece, logprob in pieces:
            for found in self._output.feed(piece, logprob):
                yield msgspec.structs.replace(found, tokens=delta.tokens)

    def end(self) -> list[Delta]:
        """What was held back in case more came."""
        return self._output.end()

    def done(self, done: Done) -> Done:
        called = self._output.called and done.finish_reason == "stop"
        return msgspec.structs.replace(done, finish_reason="tool_calls") if called else done
