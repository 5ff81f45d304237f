"""From a constraint to what OpenVINO GenAI enforces with xgrammar."""

import json
import threading
from pathlib import Path
from typing import Any

from enginehouse.runtimes.contract import Constraint, JsonSchema, Regex, Structured
from enginehouse.runtimes.engines.openvino.graphs import last_line, trial_pipeline
from enginehouse.runtimes.engines.openvino.trial import GROWN_BYTES, Trial
from enginehouse.runtimes.errors import NotEnforceable, Refused
from enginehouse.runtimes.grammar import ebnf as ebnf_shape
from enginehouse.runtimes.grammar.json_schema import grammar
from enginehouse.runtimes.grammar.matcher import param_of


class Structures:
    """Raises Refused for what cannot be enforced: an exception inside step() would cost every job its answer."""

    def __init__(self, ov: Any, genai: Any, tokenizer: Any, folder: Path, width: int) -> None:
        self._genai, self._compiler = genai, Compiler(ov, genai, tokenizer, width)
        self._ov, self._tokenizer, self._other_width = ov, tokenizer, width + 1
        self._grown = 0  # bytes of compiled grammars, about
        self._trial = Trial(folder, width)
        self._one = threading.Lock()  # at a time is tried
        self.turns = Turns()

    def make(self, constraint: Constraint) -> Any:
        """Tried in another process first, for xgrammar dies of what is too much for it."""
        with self._one:
            verdict = self._trial.passed(constraint)
        structure = structured(self._genai, constraint, verdict.ebnf)
        self._grown += verdict.grown
        with self.turns:
            self._compiler.compile(structure, param_of(constraint))
        return structure

    @property
    def full(self) -> bool:
        return self._grown > GROWN_BYTES

    def forget(self) -> None:
        """Between two steps. GenAI forgets no grammar that it compiled, but all of them where its tokenizer is used
        with logits of another width."""
        other = Compiler(self._ov, self._genai, self._tokenizer, self._other_width)
        other.compile(structured(self._genai, Regex("a"), ""), "")
        self._grown = 0

    def close(self) -> None:
        self._trial.close()
        self._compiler.close()
        self._tokenizer = None


class Turns:
    """Either a constraint is compiled or answers come to their first token under others: GenAI has one lock for both,
    at which the loop would stand until the compiling is done."""

    def __init__(self) -> None:
        self._lock, self._wanted, self._answers = threading.RLock(), False, False

    def __enter__(self) -> None:
        self._wanted = True
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._wanted = False
        self._lock.release()

    def begin_answer(self) -> bool:
        """Whether one may now."""
        if not self._answers and not self._wanted:
            self._answers = self._lock.acquire(blocking=False)
        return self._answers and not self._wanted

    def all_began(self) -> None:
        if self._answers:
            self._answers = False
            self._lock.release()


class Compiler:
    """A pipeline that nobody else uses: its tokenizer, and so its compiled grammars, are another one's."""

    def __init__(self, ov: Any, genai: Any, tokenizer: Any, width: int) -> None:
        self._ov, self._genai, self._tokenizer, self._width = ov, genai, tokenizer, width
        self._pipeline: Any = None

    def compile(self, structure: Any, param: str) -> None:
        import numpy as np

        config = self._genai.GenerationConfig()
        config.max_new_tokens = 1
        config.stop_token_ids, config.eos_token_id = {0}, 0
        config.structured_output_config = structure
        if self._pipeline is None:
            self._pipeline = trial_pipeline(self._ov, self._genai, self._tokenizer, self._width)
        try:
            self._pipeline.generate(self._ov.Tensor(np.zeros((1, 1), np.int64)), config)
        except RuntimeError as error:
            self._pipeline = None
            reason = f"the constraint cannot be enforced: {last_line(error)}"
            raise Refused(reason, param, "invalid_constraint") from error

    def close(self) -> None:
        self._pipeline = self._tokenizer = None


def structured(genai: Any, constraint: Constraint, ebnf: str) -> Any:
    structure = genai.StructuredOutputConfig()
    if isinstance(constraint, Regex):
        structure.regex = constraint.pattern
    else:
        structure.grammar = ebnf
    return structure


def ebnf(constraint: Constraint) -> str:
    """ "" for a regex, which is taken as it is."""
    try:
        match constraint:
            case Regex():
                return ""
            case JsonSchema(schema):
                return grammar(json.loads(schema))
            case Structured(structure):
                return ebnf_shape.grammar(structure)
    except NotEnforceable as error:
        reason = f"this model's engine cannot enforce {error}"
        raise Refused(reason, param_of(constraint), "invalid_constraint") from error
    raise Refused("a grammar is not honoured by this model's engine", param_of(constraint), "invalid_constraint")
