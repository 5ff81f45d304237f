"""DeepSeek V3 and R1: calls between <｜tool▁calls▁begin｜> and its end, with the name before the arguments."""

from enginehouse.runtimes.structure import Repeat, Structure, concat, one_of
from enginehouse.runtimes.tool_calls.deepseek_syntax import BEGIN, CALL, END, END_CALL, NAME, deepseek
from enginehouse.runtimes.tool_calls.parser import ParseOptions


def recognizes(template: str) -> bool:
    return BEGIN in template and "```json" in template


def after(options: ParseOptions) -> Structure:
    heads = [f"{CALL}function{NAME}{tool.name}\n```json\n" for tool in options.tools]
    call = one_of(
        [concat(head, tool.arguments, f"\n```{END_CALL}") for head, tool in zip(heads, options.tools, strict=True)]
    )
    return concat(Repeat(call, "\n") if options.parallel else call, END)


PARSER = deepseek("deepseek", recognizes, after)
