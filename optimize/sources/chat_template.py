"""Chat templates: where a checkpoint keeps its own, and the sandbox whose settings Hugging Face's are written for."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

RENDER_SECONDS = 2.0


def template_of(folder: Path, settings: dict[str, Any]) -> str:
    """`settings`: tokenizer_config.json; "" where there is none."""
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.exists() else settings.get("chat_template") or ""
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default") or next(iter(by_name.values()), "")
    return str(template)


def sandbox(now: Callable[[str], str]) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """`now` is the time in a given form."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now
    return environment


class Endless(jinja2.TemplateError):
    """A template did not come to its end."""


class Alarm:
    """SIGALRM's handler. It stays for good: an alarm that comes late would end the process."""

    def __init__(self) -> None:
        self._armed = False

    def set(self) -> None:
        signal.signal(signal.SIGALRM, self._ring)
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, RENDER_SECONDS)

    def stop(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: Any) -> None:
        if self._armed:
            raise Endless(f"it did not come to its end within {RENDER_SECONDS:g} s")


ALARM = Alarm()


@contextmanager
def bounded() -> Iterator[None]:
    """Raises Endless after RENDER_SECONDS: loops are nested as a template likes, over messages that a client sends. In
    the main thread of a process only; elsewhere nothing is bounded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ALARM.set()
    try:
        yield
    finally:
        ALARM.stop()


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own tojson escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
