"""What ONNX Runtime computes of token ids, at every place: as it is built, a graph gives the last one only."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.optimize.artifact import ELSEWHERE, CannotBuild
from enginehouse.optimize.sources.files import read_json

if TYPE_CHECKING:
    import numpy as np

HEAD = "/lm_head/"  # nodes behind the last layer
PRUNING = "/lm_head/prune/"  # of them, those by which the builder leaves out all places but the last
WANTED = "wanted_places"  # the input of a graph that gives what is asked for: counted from the end, the last is -1
KNOWN = {"input_ids", "attention_mask", "position_ids", WANTED}
BESIDE = "session.model_external_initializers_file_folder_path"  # where the weights of a graph in memory are


def logits(folder: Path, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(BESIDE, str(folder))
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            choosing_graph(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
    except (RuntimeError, ValueError) as error:
        raise CannotBuild(f"ONNX Runtime does not load '{folder.name}': {error}") from error
    ports = {port.name: port for port in session.get_inputs()}
    empty = {
        name: np.zeros((1, port.shape[1], 0, head_width(folder)), ELEMENTS[port.type])
        for name, port in ports.items()
        if name.startswith("past_key_values.")
    }
    if foreign := sorted(ports.keys() - empty.keys() - KNOWN):
        family = (read_json(folder / "config.json").get("architectures") or ["?"])[0]
        raise CannotBuild(
            f"'{family}' on ONNX Runtime has a state '{foreign[0]}', no keys and values, and is not compared with its "
            f"source; {ELSEWHERE}"
        )
    for ids in sequences:
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids), dtype=np.int64)[None],
            WANTED: np.arange(-len(ids), 0, dtype=np.int64),
        }
        found = session.run(["logits"], empty | {name: value for name, value in inputs.items() if name in ports})
        yield np.asarray(found[0][0], np.float32)


ELEMENTS = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def head_width(folder: Path) -> int:
    config = read_json(folder / "genai_config.json")
    return int(config["model"]["decoder"]["head_size"])


def choosing_graph(file: Path) -> bytes | str:
    """With an input that says which places' logits are wanted, and the weights in their file; the path of one that was
    not pruned."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    graph = model.graph
    pruning = [node for node in graph.node if node.name.startswith(PRUNING)]
    if not pruning:
        return str(file)
    at = list(graph.node).index(pruning[0])
    before, after = pruning[0].input[0], pruning[-1].output[0]
    for node in pruning:
        graph.node.remove(node)
    graph.node.insert(at, onnx.helper.make_node("Gather", [before, WANTED], [after], f"{PRUNING}{WANTED}", axis=1))
    for known in [value for value in graph.value_info if value.name.startswith(HEAD)]:
        graph.value_info.remove(known)  # their shapes say one place
    graph.input.append(onnx.helper.make_tensor_value_info(WANTED, onnx.TensorProto.INT64, [WANTED]))
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_param = WANTED
    return bytes(model.SerializeToString())
