"""DeepSeek V3.1: as before, with nothing but a mark between name and arguments."""

from enginehouse.runtimes.structure import Repeat, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.deepseek_syntax import BEGIN, CALL, END, END_CALL, NAME, deepseek
from enginehouse.runtimes.tool_calls.format import Setting


def recognizes(template: str) -> bool:
    return BEGIN in template and "```json" not in template


def after(setting: Setting) -> Structure:
    one = one_of([concat(f"{CALL}{tool.name}{NAME}", tool.arguments, END_CALL) for tool in setting.tools])
    return concat(Repeat(one) if setting.parallel else one, END)


FORMAT = deepseek("deepseek-v3.1", recognizes, after)
