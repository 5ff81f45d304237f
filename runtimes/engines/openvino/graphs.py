"""Graphs that OpenVINO GenAI is given or that are made of the model's."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginehouse.runtimes.decoding.tokenizer import Vocabulary

MODEL, DETOKENIZER = "openvino_model.xml", "openvino_detokenizer.xml"


def without_head(ov: Any, model: Any) -> Any:
    """The model up to what enters its last matrix product: the normalised hidden states."""
    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":  # a head may scale or cap its logits
        node = node.input_value(0).get_node()
    hidden = ov.opset15.result(node.input_value(0), name="hidden_states")
    return ov.Model([hidden], model.get_sinks(), model.get_parameters(), "hidden states")


def trial_pipeline(ov: Any, genai: Any, tokenizer: Any, vocabulary: int) -> Any:
    """Over a model that gives every token the same logit."""
    import numpy as np

    op = ov.opset15
    ids = op.parameter([-1, -1], ov.Type.i64, name="input_ids")
    mask = op.parameter([-1, -1], ov.Type.i64, name="attention_mask")
    beam = op.parameter([-1], ov.Type.i32, name="beam_idx")
    for port in (ids, mask, beam):
        port.output(0).set_names({port.get_friendly_name()})
    shape = op.concat([op.shape_of(ids), op.constant(np.array([vocabulary], np.int64))], 0)
    used = op.convert(mask, "f32"), op.convert(beam, "f32")  # an input that nothing uses is dropped
    same = op.add(*(op.reduce_sum(port, np.arange(rank), False) for port, rank in zip(used, (2, 1), strict=True)))
    logits = op.broadcast(same, shape)
    logits.output(0).set_names({"logits"})
    model = ov.Model([op.result(logits)], [ids, mask, beam], "trial")
    with tempfile.TemporaryDirectory() as folder:
        ov.save_model(model, f"{folder}/{MODEL}")
        return genai.LLMPipeline(folder, tokenizer, "CPU", ATTENTION_BACKEND="SDPA")


def own_tokenizer(ov: Any, genai: Any, vocabulary: Vocabulary, width: int) -> Any:
    """One that knows the text of every id as Vocabulary does: constraints work with any folder, and a special token,
    which shows no text, never passes for the text of its name."""
    with tempfile.TemporaryDirectory() as folder:
        save_detokenizer(ov, vocabulary.pieces_for(width), Path(folder) / DETOKENIZER)
        # What may end an answer whose constraint leaves that to the model; GenAI asks for one.
        ends = {"eos_token_id": vocabulary.ends[0]} if vocabulary.ends else {}
        (Path(folder) / "config.json").write_text(json.dumps(ends))
        return genai.Tokenizer(folder)


def save_detokenizer(ov: Any, pieces: Sequence[bytes], file: Path) -> None:
    """An IR in which GenAI finds the bytes of every id."""
    import numpy as np
    from openvino_tokenizers import _get_factory, _get_opset_factory

    op = ov.opset15
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
    begins = np.concatenate([np.zeros(1, np.int32), ends[:-1]])
    ids = op.parameter([-1, -1], ov.Type.i64)
    skipped = np.zeros(1, np.int32)  # one id, for GenAI slices it and the slice of nothing fails
    constants = [begins, ends, np.frombuffer(b"".join(pieces), np.uint8), skipped]
    texts = _get_factory().create("VocabDecoder", [op.convert(ids, "i32"), *map(op.constant, constants)]).outputs()
    whole = _get_factory().create("FuzeRagged", texts[:4], {}).outputs()
    string = _get_opset_factory("opset15").create("StringTensorPack", [*whole, texts[4]])
    string.output(0).set_names({"string_output"})
    ov.save_model(ov.Model([op.result(string.output(0))], [ids], "detokenizer"), file)


def last_line(error: Exception) -> str:
    """OpenVINO's messages begin with the place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def silence() -> None:
    """OpenVINO reports every import and conversion to Google Analytics; without this package it has a stub for it."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
