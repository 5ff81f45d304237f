"""Chat templates: where a checkpoint keeps its own, and the sandbox whose settings Hugging Face's are written for."""

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.compiler
import jinja2.sandbox

from enginehouse.optimize.artifact import Source
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.gguf_header import read

RENDER_SECONDS = 2.0


def template_of(folder: Path, settings: dict[str, Any]) -> str:
    """`settings`: tokenizer_config.json; "" where there is none."""
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.exists() else settings.get("chat_template") or ""
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default") or next(iter(by_name.values()), "")
    return str(template)


@functools.lru_cache(maxsize=64)
def kept_template(source: Source) -> str:
    """That of a source as it lies there; "" where there is none."""
    if not source.path:
        return ""
    path = Path(source.path)
    if source.kind == "gguf":
        keys, _ = read(path)
        return str(keys.get("tokenizer.chat_template", ""))
    return template_of(path, read_json(path / "tokenizer_config.json"))


class Endless(jinja2.TemplateError):
    """A template did not come to its end."""


class TimedCode(jinja2.compiler.CodeGenerator):
    """Looks at the time at the start of each body: of a loop's turn, of a macro's call."""

    def blockvisit(self, nodes: Iterable[jinja2.nodes.Node], frame: jinja2.compiler.Frame) -> None:
        self.writeline("environment.check_time()")
        super().blockvisit(nodes, frame)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = TimedCode

    @staticmethod
    def check_time() -> None:
        if time.monotonic() > DEADLINE.get():
            raise Endless(f"it did not come to its end within {RENDER_SECONDS:g} s")


def sandbox(now: Callable[[str], str]) -> Sandbox:
    """`now` is the time in a given form."""
    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now
    return environment


DEADLINE = ContextVar("DEADLINE", default=math.inf)


@contextmanager
def bounded() -> Iterator[None]:
    """Templates raise Endless after RENDER_SECONDS: their loops are nested as they like, over what a client sends."""
    token = DEADLINE.set(time.monotonic() + RENDER_SECONDS)
    try:
        yield
    finally:
        DEADLINE.reset(token)


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own tojson escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
