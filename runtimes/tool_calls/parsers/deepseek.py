"""DeepSeek V3 and R1: calls between <｜tool▁calls▁begin｜> and its end, with the name before the arguments."""

from enginehouse.runtimes.structure import Repeat, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.deepseek_syntax import BEGIN, CALL, END, END_CALL, NAME, deepseek
from enginehouse.runtimes.tool_calls.format import Setting


def recognizes(template: str) -> bool:
    return BEGIN in template and "```json" in template


def after(setting: Setting) -> Structure:
    heads = [f"{CALL}function{NAME}{tool.name}\n```json\n" for tool in setting.tools]
    one = one_of(
        [concat(head, tool.arguments, f"\n```{END_CALL}") for head, tool in zip(heads, setting.tools, strict=True)]
    )
    return concat(Repeat(one, "\n") if setting.parallel else one, END)


FORMAT = deepseek("deepseek", recognizes, after)
