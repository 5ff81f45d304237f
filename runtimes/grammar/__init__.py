"""Constraints as grammars: `matcher` by llguidance, `ebnf` and `json_schema` for xgrammar.

Engines and decoding import it; it knows neither.
"""
