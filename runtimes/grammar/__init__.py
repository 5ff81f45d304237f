"""Constraints as grammars: engines take `matcher.GrammarCompiler` for llguidance, or `ebnf` and `json_schema` for xgrammar;
nothing here knows an engine or a tool parser."""
