"""One file per form of tool calls; each exports one FORMAT. The directory is the registry."""

import functools
import importlib
import pkgutil

from enginehouse.runtimes.tool_calls.format import Format
from enginehouse.runtimes.tool_calls.parsers import generic


@functools.cache
def formats() -> dict[str, Format]:
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {module.FORMAT.name: module.FORMAT for module in modules}


@functools.cache
def form_of(template: str | None) -> Format:
    """The form that a chat template teaches; ours, where it teaches none."""
    return next((form for form in formats().values() if form.recognizes(template or "")), generic.FORMAT)


def marks(template: str | None) -> frozenset[str]:
    """Tokens that must show their text for its answers to be understood."""
    form = form_of(template)
    return frozenset((*form.marks, *form.thought))
