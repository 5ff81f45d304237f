"""FunctionGemma: <start_function_call>call:NAME{key:<escape>text<escape>,key:1}<end_function_call>."""

from runtimes.calling import THINK
from runtimes.formats.gemma import gemma
from runtimes.gemma_calls import Marks

FORMAT = gemma("function-gemma", Marks("<start_function_call>", "<end_function_call>", "<escape>"), THINK)
