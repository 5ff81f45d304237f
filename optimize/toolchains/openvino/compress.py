"""Weight compression of a stateful IR by NNCF; embeddings and the output layer stay in 8 bits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from enginehouse.optimize.artifact import CannotBuild, Report

WINDOWS, WINDOW_TOKENS = 16, 128  # of calibration text: what AWQ and scale estimation look at
NAMED = re.compile(r"(INT[48])_(ASYM|SYM)(?:_G(\d+))?(_AWQ)?(_SE)?(_MIXED)?")
# What stands between the first matrices of a feed-forward network and its last.
BETWEEN = {"Convert", "Gelu", "Multiply", "Relu", "Sigmoid", "Slice", "Split", "Swish", "Tanh", "VariadicSplit"}


def compress(model_file: Path, output: Path, precision: str, checkpoint: Path, report: Report) -> None:
    import nncf
    import openvino

    report("quantize", 0.0)
    match = NAMED.fullmatch(precision)
    assert match
    bits, mode, group, awq, estimation, mixed = match.groups()
    model = openvino.Core().read_model(model_file)
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode[f"{bits}_{mode}"]}
    if group:
        check_group(model, precision, int(group))
        options |= {"group_size": int(group), "awq": bool(awq)}
    if estimation:
        windows = list(calibration_windows(checkpoint))
        options |= {"scale_estimation": True, "dataset": nncf.Dataset(windows), "subset_size": len(windows)}
    if mixed:
        options["ignored_scope"] = nncf.IgnoredScope(names=sensitive(model))
    report("quantize", 0.1)
    compressed = nncf.compress_weights(model, **options)
    if mixed:  # what is in 4 bits already stays so
        compressed = nncf.compress_weights(compressed, mode=nncf.CompressWeightsMode.INT8_ASYM)
    report("quantize", 0.9)
    openvino.save_model(compressed, output, compress_to_fp16=False)
    report("quantize", 1.0)


def sensitive(model: Any) -> list[str]:
    """All matrices but those that widen (gate and up), and of the first and last eighth of the layers these too; none
    where there are no such layers. An export names them by number, so it goes by what they feed: another matrix, with
    only an activation between."""
    matrices = {node.get_friendly_name(): node for node in model.get_ordered_ops() if is_matrix(node)}
    layers: list[set[str]] = []
    for node in matrices.values():
        widening: set[str] = set()
        behind = [node.input_value(0).get_node()]
        while behind:
            found = behind.pop()
            if found.get_friendly_name() in matrices:
                widening.add(found.get_friendly_name())
            elif found.get_type_name() in BETWEEN:
                behind += [value.get_node() for value in found.input_values()]
        if widening:
            layers.append(widening)
    if not layers:  # of an unknown kind: the gate says what four bits make of it
        return []
    ends = len(layers) // 8
    return sorted(matrices.keys() - set().union(*layers[ends : len(layers) - ends]))


def is_matrix(node: Any) -> bool:
    """A product with weights."""
    return bool(node.get_type_name() == "MatMul" and node.input_value(1).get_partial_shape().is_static)


def check_group(model: Any, precision: str, group: int) -> None:
    """NNCF would leave a matrix that does not divide in 8 bits, and say so in a log nobody reads."""
    widths = {node.input_value(1).get_partial_shape()[1].get_length() for node in model.get_ops() if is_matrix(node)}
    odd = sorted(width for width in widths if width % group)
    if odd:
        fitting = [size for size in (128, 64, 32) if not any(width % size for width in widths)]
        remedy = f"take a group of {fitting[0]}" if fitting else "take int8"
        raise CannotBuild(f"{precision} does not fit: a matrix is {odd[0]} wide, no multiple of {group}; {remedy}")


def calibration_windows(checkpoint: Path) -> Iterator[dict[str, Any]]:
    """What the model sees of calibration.txt: the checkpoint's own if it has one, else ours."""
    import numpy as np
    import tokenizers

    file = checkpoint / "calibration.txt"
    if not file.exists():
        file = Path(__file__).parents[2] / "quality" / "calibration.txt"
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    ids = np.array(tokenizer.encode(file.read_text(encoding="utf-8"), add_special_tokens=False).ids, np.int64)
    count = min(WINDOWS, len(ids) // WINDOW_TOKENS)
    if not count:
        raise CannotBuild(f"'{file}' is shorter than {WINDOW_TOKENS} tokens")
    for start in np.linspace(0, len(ids) - WINDOW_TOKENS, count).astype(int):
        yield {
            "input_ids": ids[None, start : start + WINDOW_TOKENS],
            "attention_mask": np.ones((1, WINDOW_TOKENS), np.int64),
            "position_ids": np.arange(WINDOW_TOKENS, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
