"""What can go wrong with a request; server/errors.py makes the HTTP status of each.

Exception
├── Refused              400  the request cannot be served as it stands: server, routing, worker, engines
│   ├── TooLong               the prompt does not fit the model's context: pool, worker
│   └── RefusedElsewhere      an upstream says so: an engine here may take it all the same
├── UnknownModel         404  no model or alias of that name: pool, commands
├── Unavailable          503  the model cannot be served now: pool, worker/client.py at a load
│   ├── Busy             429  too many requests wait for it already: pool, worker/client.py
│   └── TimedOut         504  the request's own time is over, or that of an upstream: server, upstream
├── EngineFailed         500  the engine failed this job; in a stream that has begun, an error event: worker/client.py
│   ├── WorkerDied            its process is gone: the pool asks another engine where it can
│   └── UpstreamFailed   502  another server answered what is no answer: upstream
├── ConstraintFailed          a constraint cannot be followed further: grammar, decoding; the engine ends that job alone
└── NotEnforceable            a schema that xgrammar's EBNF cannot say: grammar; the engine makes it a Refused
"""

from typing import TypeVar

E = TypeVar("E", bound=Exception)
RETRY_SECONDS = 5  # after which who was sent away for want of room may ask again


class Refused(Exception):
    """`param`: the request's field at fault; `code`: one of OpenAI's words for it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class TooLong(Refused):
    """In OpenAI's own sentence: clients look for it, and for its numbers. `at_least`: more was not counted."""

    def __init__(self, context: int, tokens: int, at_least: bool = False, param: str | None = "messages") -> None:
        self.context, self.tokens, self.at_least = context, tokens, at_least
        more = " or more" if at_least else ", which leaves none for an answer" if tokens == context else ""
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, your {param} resulted in {tokens} "
            f"tokens{more}. Please reduce the length of the {param}.",
            param,
            "context_length_exceeded",
        )


class RefusedElsewhere(Refused):
    pass


class UnknownModel(Exception):
    pass


class Unavailable(Exception):
    """`retry_after` in seconds when waiting helps."""

    def __init__(self, message: str, code: str = "model_unavailable", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.retry_after = message, code, retry_after


class NoMemory(Unavailable):
    """A load that would do with so many bytes."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message, "no_memory")
        self.needed = needed


def quoting(error: E, said: str) -> E:
    """With what an upstream says of it, which may be of the prompt: for who asked, and for no log and nobody else."""
    if said:
        error.add_note(said)
    return error


def in_full(error: Exception) -> str:
    return ": ".join([str(error), *getattr(error, "__notes__", ())])


def shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down", "shutting_down")


class Busy(Unavailable):
    pass


class TimedOut(Unavailable):
    def __init__(self, message: str, code: str = "request_timeout") -> None:
        super().__init__(message, code)


class EngineFailed(Exception):
    pass


class WorkerDied(EngineFailed):
    """Jobs that have sent nothing may run elsewhere."""


class UpstreamFailed(EngineFailed):
    pass


class ConstraintFailed(Exception):
    pass


class NotEnforceable(ValueError):
    """The message names what in the schema it is."""
