"""Mistral: [TOOL_CALLS][{"name": …, "arguments": …}, …]."""

from enginehouse.runtimes.structure import Structure
from enginehouse.runtimes.tool_calls.format import Setting, list_structure, read_list, tagged
from enginehouse.runtimes.tool_calls.mistral_syntax import BEGIN, THOUGHT, with_short_ids
from enginehouse.runtimes.tool_calls.scanner import Incoming, Reading


def recognizes(template: str) -> bool:
    return BEGIN in template and "[ARGS]" not in template


def read_calls(incoming: Incoming, setting: Setting, trigger: str) -> Reading[None]:
    yield from read_list(incoming, trigger)


def after(setting: Setting) -> Structure:
    return list_structure(setting)


FORMAT = tagged(
    "mistral",
    recognizes,
    (BEGIN,),
    read_calls,
    after,
    repeats=False,
    marks=(BEGIN,),
    thought=THOUGHT,
    prepare=with_short_ids,
)
