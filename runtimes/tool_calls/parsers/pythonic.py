"""Llama 4, Llama 3.2 and Gemma with a template for it: the whole answer is [f(a=1), g(b="x")]."""

from enginehouse.runtimes.structure import ConstString, Repeat, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.format import Setting, beginning, optional
from enginehouse.runtimes.tool_calls.python_syntax import call_structure, read_call
from enginehouse.runtimes.tool_calls.scanner import Incoming, Reading

START, END = "<|python_start|>", "<|python_end|>"


def recognizes(template: str) -> bool:
    return "func_name1(" in template


def triggers(setting: Setting) -> tuple[str, ...]:
    return (START, *(f"[{tool.name}(" for tool in setting.tools))


def read_calls(incoming: Incoming, setting: Setting, trigger: str) -> Reading[None]:
    before = "["
    if trigger == START:
        if not (yield from incoming.starts(("[",))):
            yield incoming.back(trigger)
            return
        before = f"{START}["
    else:
        incoming.held = trigger[1:] + incoming.held
    while (yield from read_call(incoming, before)):
        if not (before := (yield from incoming.starts((",",)))):
            break
    else:
        return
    yield from incoming.starts(("]",))
    yield from incoming.starts((END,))


def calls(setting: Setting) -> Structure:
    first = one_of([concat(ConstString(f"[{tool.name}(", spaced=True), call_structure(tool)) for tool in setting.tools])
    later = one_of([concat(f", {tool.name}(", call_structure(tool)) for tool in setting.tools])
    return concat(first, optional(Repeat(later)), "]") if setting.parallel else concat(first, "]")


FORMAT = beginning("pythonic", recognizes, triggers, read_calls, calls, marks=(START, END))
