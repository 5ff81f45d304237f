"""Gemma 4: <|tool_call>call:NAME{key:<|"|>text<|"|>,key:1}<tool_call|>, one for each call."""

from enginehouse.runtimes.tool_calls.format import Format, tagged
from enginehouse.runtimes.tool_calls.gemma_syntax import Marks, after, read_call

MARKS = Marks("<|tool_call>", "<tool_call|>", '<|"|>')


def gemma(name: str, marks: Marks, thought: tuple[str, str]) -> Format:
    return tagged(
        name,
        lambda template: marks.begin in template,
        (marks.begin,),
        lambda incoming, setting, trigger: read_call(incoming, marks),
        lambda setting: after(setting, marks),
        repeats=True,
        marks=(marks.begin, marks.end, marks.quote),
        thought=thought,
    )


FORMAT = gemma("gemma", MARKS, ("<|channel>thought", "<channel|>"))
