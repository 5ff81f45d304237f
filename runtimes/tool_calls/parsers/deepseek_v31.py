"""DeepSeek V3.1: as before, with nothing but a mark between name and arguments."""

from enginehouse.runtimes.structure import Repeat, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.deepseek_syntax import BEGIN, CALL, END, END_CALL, NAME, deepseek
from enginehouse.runtimes.tool_calls.parser import ParseOptions


def recognizes(template: str) -> bool:
    return BEGIN in template and "```json" not in template


def after(options: ParseOptions) -> Structure:
    call = one_of([concat(f"{CALL}{tool.name}{NAME}", tool.arguments, END_CALL) for tool in options.tools])
    return concat(Repeat(call) if options.parallel else call, END)


PARSER = deepseek("deepseek-v3.1", recognizes, after)
