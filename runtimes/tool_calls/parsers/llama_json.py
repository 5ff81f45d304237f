"""Llama 3: the whole answer is {"name": …, "parameters": …}, with <|python_tag|> before it or not."""

from enginehouse.runtimes.structure import ConstString, Repeat, Structure, concat
from enginehouse.runtimes.tool_calls.format import Setting, beginning, object_structure, optional, read_object
from enginehouse.runtimes.tool_calls.scanner import Incoming, Reading

TAG, OBJECT = "<|python_tag|>", '{"name"'


def recognizes(template: str) -> bool:
    return '"parameters":' in template and "<|start_header_id|>" in template


def read_calls(incoming: Incoming, setting: Setting, trigger: str) -> Reading[None]:
    before = trigger
    if trigger == OBJECT:
        incoming.held, before = trigger + incoming.held, ""
    while (yield from read_object(incoming, before)):
        if not (before := (yield from incoming.starts((";",)))):
            return


def calls(setting: Setting) -> Structure:
    one = object_structure(setting, "parameters", spaced=True)
    return concat(optional(ConstString(TAG)), Repeat(one, "; ") if setting.parallel else one)


FORMAT = beginning("llama-json", recognizes, lambda setting: (TAG, OBJECT), read_calls, calls, marks=(TAG,))
