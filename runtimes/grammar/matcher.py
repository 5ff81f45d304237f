"""Constrained decoding for engines without their own: a constraint -> which tokens may come next, by llguidance."""

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from enginehouse.runtimes.contract import Constraint, Grammar, JsonSchema, Regex, Structured
from enginehouse.runtimes.errors import ConstraintFailed, Refused
from enginehouse.runtimes.grammar import lark
from enginehouse.runtimes.structure import JsonValue

if TYPE_CHECKING:
    import numpy as np

# Between JSON's tokens: nothing, a blank, or a new line and its indentation. Without a limit small models write blanks
# for ever.
BLANKS = r"( |\n[ \t]{0,24})?"


class GrammarCompiler:
    """Compiles constraints for one vocabulary. Built when the first one comes: about a second for 150k tokens."""

    def __init__(
        self, pieces: Sequence[bytes], special: Sequence[int], ends: Sequence[int], encode: Callable[[str], list[int]]
    ) -> None:
        """`pieces`: the text of each id; `special`: ids that show none; `ends`: ids that end an answer."""
        import llguidance

        if not ends:
            raise Refused("this model has no token that ends an answer, which a constraint needs", PARAM)
        self._lib = llguidance
        wrapped = llguidance.TokenizerWrapper(Wrapped(pieces, special, ends, encode))
        self._tokenizer = llguidance.LLTokenizer(wrapped, eos_token=list(ends))

    def matcher(self, constraint: Constraint) -> "Matcher":
        """Raises Refused, naming what cannot be enforced, or cannot be followed to the first token."""
        param = param_of(constraint)
        try:
            return self._follow(self._lark(constraint))
        except ValueError as error:
            raise Refused(f"the constraint cannot be read: {first_line(error)}", param, "invalid_constraint") from error
        except ConstraintFailed as error:
            raise Refused(f"the constraint cannot be enforced: {error}", param, "invalid_constraint") from error

    def _follow(self, grammar: str) -> "Matcher":
        """Raises ConstraintFailed where it cannot be, not even to the first token."""
        if invalid := self._lib.LLMatcher.validate_grammar(grammar, self._tokenizer):
            raise ConstraintFailed(first_line(invalid))
        matcher = Matcher(self._lib.LLMatcher(self._tokenizer, grammar, log_level=0), self._tokenizer.vocab_size)
        matcher.next_tokens()
        return matcher

    def _lark(self, constraint: Constraint) -> str:
        match constraint:
            case JsonSchema(schema):
                return self._of_schema(schema)
            case Regex(pattern):
                return str(self._lib.LLMatcher.grammar_from_regex(pattern))
            case Grammar(text):
                return str(self._lib.LLMatcher.grammar_from_lark(as_lark(text)))
            case Structured(structure):
                return str(self._lib.LLMatcher.grammar_from_lark(lark.grammar(structure, self._enforceable)))

    def _of_schema(self, schema: str) -> str:
        return str(self._lib.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": BLANKS}))

    def _enforceable(self, value: JsonValue) -> str:
        """The value's schema, or that of any object where it need not be enforced and cannot be."""
        schema = json.loads(value.schema)
        if not value.must and not self._can_enforce(value.schema):
            schema = {"type": "object"}
        return json.dumps({"x-guidance": {"whitespace_pattern": BLANKS}, **schema})

    def _can_enforce(self, schema: str) -> bool:
        try:
            self._follow(self._of_schema(schema))
        except (ValueError, ConstraintFailed):
            return False
        return True


BLANK_LINES = re.compile(r"\n\s*")  # they cost the converter the square of their number


def as_lark(grammar: str) -> str:
    """Raises ValueError for GBNF that cannot be read."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(BLANK_LINES.sub("\n", grammar)))
    except Exception as error:  # a rule that is not there is a plain one, and it must not end the worker
        raise ValueError(first_line(error)) from error


PARAM = "response_format"


def param_of(constraint: Constraint) -> str:
    """The request's field that asks for it."""
    return constraint.asked_by if isinstance(constraint, Structured) else PARAM


def first_line(said: object) -> str:
    """llguidance goes on with its whole state."""
    return str(said).strip().partition("\n")[0]


class Matcher:
    """One answer under a constraint."""

    def __init__(self, ll_matcher: Any, vocabulary: int) -> None:
        import llguidance.numpy

        self._ll_matcher, self._vocabulary = ll_matcher, vocabulary
        self._fill = llguidance.numpy.fill_next_token_bitmask
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocabulary)

    def copy(self) -> "Matcher":
        """For another answer: what was compiled is shared."""
        return Matcher(self._ll_matcher.deep_copy(), self._vocabulary)

    def forbid(self, logits: "np.ndarray[Any, Any]") -> None:
        """Sets the logits of tokens that may not come next to -inf, in place. `logits`: float32, (vocabulary,)."""
        import numpy as np

        allowed = np.unpackbits(self.next_tokens().view(np.uint8), bitorder="little")
        known = min(len(allowed), len(logits))
        logits[:known][allowed[:known] == 0] = -np.inf
        logits[known:] = -np.inf

    def next_tokens(self) -> "np.ndarray[Any, Any]":
        """A bit for each token that may come next."""
        self._fill(self._ll_matcher, self._mask, 0)
        if self._ll_matcher.is_error():
            raise ConstraintFailed(f"it is too hard to follow: {first_line(self._ll_matcher.get_error())}")
        mask: np.ndarray[Any, Any] = self._mask[0]
        return mask

    def accept(self, token: int) -> bool:
        """Notes the chosen token; True when nothing more may follow but the end."""
        if not self._ll_matcher.consume_token(token):
            why = first_line(self._ll_matcher.get_error())
            raise ConstraintFailed(f"the constraint does not admit token {token}: {why}")
        return bool(self._ll_matcher.is_stopped())


class Wrapped:
    """What llguidance wants to know of a tokenizer."""

    def __init__(
        self, pieces: Sequence[bytes], special: Sequence[int], ends: Sequence[int], encode: Callable[[str], list[int]]
    ) -> None:
        self.eos_token_id = ends[0]
        self.bos_token_id = None
        self.tokens = list(pieces)
        self.special_token_ids = list(special)
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text, not bytes")
        return self._encode(text)
