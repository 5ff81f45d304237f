"""The log: each record a line of text or of JSON, with the id of the request it belongs to. What an exception says may
be of a prompt, so that only where it came about is shown, unless `log_prompts`."""

import logging
import time
import traceback
from types import TracebackType
from typing import Any

import msgspec

from enginehouse.config.schema import Server
from enginehouse.server.request_id import CURRENT, TRACE

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
PROMPT_LETTERS = 20_000  # of a prompt that is logged
ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Discreet(logging.Formatter):
    def __init__(self, log_prompts: bool = False) -> None:
        super().__init__(TEXT)
        self._log_prompts = log_prompts

    def formatException(self, ei: ExceptionInfo) -> str:
        if self._log_prompts or ei[1] is None:
            return super().formatException(ei)
        return "\n".join(stack(ei[1]))


class TextLines(Discreet):
    def formatMessage(self, record: logging.LogRecord) -> str:
        line, request = super().formatMessage(record), CURRENT.get()
        return f"{line}; {request}" if request else line


class JsonLines(Discreet):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": f"{time.strftime('%FT%T', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := CURRENT.get():
            fields["request_id"] = request
        if trace := TRACE.get():
            fields["trace_id"] = trace
        if record.exc_info and record.exc_info[1]:
            fields["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def configure(server: Server) -> None:
    """As the config says it, from now on."""
    formatter = (JsonLines if server.log_format == "json" else TextLines)(server.log_prompts)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)


def stack(error: BaseException) -> list[str]:
    """Where it came about, and why, without its words; those of the system are no client's."""
    lines = []
    if cause := error.__cause__ or error.__context__:
        lines += [*stack(cause), "and then:"]
    lines += [line.rstrip() for line in traceback.format_tb(error.__traceback__)]
    words = f": {error}" if isinstance(error, OSError) else ""
    lines.append(type(error).__name__ + words)
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            lines += stack(inner)
    return lines
