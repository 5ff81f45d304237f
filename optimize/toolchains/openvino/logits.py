"""What OpenVINO computes of token ids on this CPU, in the precision its engine takes by default."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.toolchains.openvino.arithmetic import properties

if TYPE_CHECKING:
    import numpy as np

MODEL = "openvino_model.xml"


def logits(folder: Path, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import numpy as np
    import openvino

    core = openvino.Core()
    try:
        request = core.compile_model(folder / MODEL, "CPU", properties(folder, core)).create_infer_request()
    except RuntimeError as error:
        raise CannotBuild(f"OpenVINO does not load '{folder.name}': {str(error).strip().splitlines()[-1]}") from error
    known = {name for port in request.model_inputs for name in port.get_names()}
    for ids in sequences:
        request.reset_state()
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found = request.infer({name: value for name, value in inputs.items() if name in known})
        yield np.asarray(found["logits"][0], np.float32)
