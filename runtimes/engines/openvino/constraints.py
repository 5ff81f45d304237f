"""From a constraint to what OpenVINO GenAI enforces with xgrammar."""

import json
from collections.abc import Callable
from typing import Any

from enginehouse.runtimes.contract import Constraint, JsonSchema, Regex, Structured
from enginehouse.runtimes.engines.openvino.graphs import last_line, trial_pipeline
from enginehouse.runtimes.errors import NotEnforceable, Refused
from enginehouse.runtimes.grammar import ebnf as ebnf_shape
from enginehouse.runtimes.grammar.json_schema import grammar
from enginehouse.runtimes.grammar.matcher import Matcher, param_of

KEPT = 64  # structures


class Structures:
    """Raises Refused for what cannot be enforced: an exception inside step() would cost every job its answer."""

    def __init__(
        self, ov: Any, genai: Any, tokenizer: Any, vocabulary: int, matcher: Callable[[Constraint], Matcher]
    ) -> None:
        """`matcher`: reads a constraint strictly, for xgrammar ignores what it does not know."""
        self._ov, self._genai, self._tokenizer, self._vocabulary, self._matcher = (
            ov,
            genai,
            tokenizer,
            vocabulary,
            matcher,
        )
        self._made: dict[Constraint, Any] = {}
        self._trial: Any = None  # a pipeline over no model

    def of(self, constraint: Constraint) -> Any:
        if constraint not in self._made:
            self._matcher(constraint)
            structure = self._genai.StructuredOutputConfig()
            match constraint:
                case Regex(pattern):
                    structure.regex = pattern
                case _:
                    structure.grammar = ebnf(constraint)
            self._compile(structure, param_of(constraint))
            if len(self._made) >= KEPT:
                self._made.clear()
            self._made[constraint] = structure
        return self._made[constraint]

    def close(self) -> None:
        self._trial = self._tokenizer = None

    def _compile(self, structure: Any, param: str) -> None:
        """In a pipeline that nobody else uses: its tokenizer, and so its compiled grammars, are the real one's."""
        import numpy as np

        config = self._genai.GenerationConfig()
        config.max_new_tokens = 1
        config.stop_token_ids, config.eos_token_id = {0}, 0
        config.structured_output_config = structure
        if self._trial is None:
            self._trial = trial_pipeline(self._ov, self._genai, self._tokenizer, self._vocabulary)
        try:
            self._trial.generate(self._ov.Tensor(np.zeros((1, 1), np.int64)), config)
        except RuntimeError as error:
            self._trial = None
            reason = f"the constraint cannot be enforced: {last_line(error)}"
            raise Refused(reason, param, "invalid_constraint") from error


def ebnf(constraint: Constraint) -> str:
    try:
        match constraint:
            case JsonSchema(schema):
                return grammar(json.loads(schema))
            case Structured(structure):
                return ebnf_shape.grammar(structure)
    except NotEnforceable as error:
        reason = f"this model's engine cannot enforce {error}"
        raise Refused(reason, param_of(constraint), "invalid_constraint") from error
    raise Refused("a grammar is not honoured by this model's engine", param_of(constraint), "invalid_constraint")
