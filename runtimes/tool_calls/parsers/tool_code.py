"""Gemma's guide: Python calls in a fence, ```tool_code … ```, one to a line."""

from enginehouse.runtimes.structure import Repeat, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.format import Setting, tagged
from enginehouse.runtimes.tool_calls.python_syntax import call_structure, read_call
from enginehouse.runtimes.tool_calls.scanner import Incoming, Reading

BEGIN, END = "```tool_code", "```"


def recognizes(template: str) -> bool:
    return BEGIN in template


def read_calls(incoming: Incoming, setting: Setting, trigger: str) -> Reading[None]:
    before = trigger
    while (yield from read_call(incoming, before)):
        before = ""
        if (yield from incoming.starts((END,))):
            return


def after(setting: Setting) -> Structure:
    one = one_of([concat(f"\n{tool.name}(", call_structure(tool)) for tool in setting.tools])
    return concat(Repeat(one) if setting.parallel else one, f"\n{END}")


FORMAT = tagged("tool-code", recognizes, (BEGIN,), read_calls, after, repeats=False)
