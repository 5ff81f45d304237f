"""Gemma 4: <|tool_call>call:NAME{key:<|"|>text<|"|>,key:1}<tool_call|>, one for each call."""

from enginehouse.runtimes.tool_calls.gemma_syntax import Marks, gemma

PARSER = gemma("gemma", Marks("<|tool_call>", "<tool_call|>", '<|"|>'), ("<|channel>thought", "<channel|>"))
