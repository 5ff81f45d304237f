"""FunctionGemma: <start_function_call>call:NAME{key:<escape>text<escape>,key:1}<end_function_call>."""

from enginehouse.runtimes.tool_calls.gemma_syntax import Marks, gemma
from enginehouse.runtimes.tool_calls.parser import THINK

PARSER = gemma("function-gemma", Marks("<start_function_call>", "<end_function_call>", "<escape>"), THINK)
