"""A Hugging Face checkpoint -> an OpenVINO IR, by transformers' own exporter."""

import os
import sys
from pathlib import Path
from typing import Any

from enginehouse.optimize.artifact import ELSEWHERE, CannotBuild, Report

# The hub is never asked: the checkpoint is on this disk.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Axes of length 1 would become constants of the graph.
SEQUENCES, PAST, NEW = 2, 5, 3


def export(checkpoint: Path, output: Path, precision: str, report: Report) -> None:
    """Writes `output`, its .bin beside it, and the tokenizer's two graphs."""
    os.environ.update(OFFLINE)
    import openvino
    import torch
    import transformers

    report("convert", 0.0)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=getattr(torch, DTYPES[precision]), attn_implementation="sdpa", trust_remote_code=False
        ).eval()
    except ValueError as error:  # of a family without that attention, the only one the exporter takes
        raise CannotBuild(f"transformers cannot make '{checkpoint}' ready for OpenVINO: {sentence(error)}") from error
    report("convert", 0.2)
    cache = transformers.DynamicCache(config=model.config)
    tokens = torch.arange(1, 1 + SEQUENCES * (PAST + NEW)).reshape(SEQUENCES, PAST + NEW) % model.config.vocab_size
    with torch.no_grad():
        model(input_ids=tokens[:, :PAST], past_key_values=cache, use_cache=True)
    inputs = {
        "input_ids": tokens[:, PAST:],
        "attention_mask": torch.ones(SEQUENCES, PAST + NEW, dtype=torch.int64),  # left out, the graph lacks the port
        "position_ids": torch.arange(PAST, PAST + NEW).expand(SEQUENCES, NEW).contiguous(),
        "past_key_values": cache,
        "use_cache": True,
    }
    try:
        exported = traced(model, inputs)
    except Exception as error:  # whatever torch.export or the frontend cannot express
        family = (model.config.architectures or ["?"])[0]
        raise CannotBuild(
            f"transformers cannot export '{family}' to OpenVINO: {first_line(error)}; {ELSEWHERE}"
        ) from error
    report("convert", 0.8)
    openvino.save_model(exported, output, compress_to_fp16=False)
    save_tokenizer(checkpoint, output.parent)
    report("convert", 1.0)


def traced(model: Any, inputs: dict[str, Any]) -> Any:
    """As it was traced where OpenVINO knows all of its operations, else decomposed, which takes longer than tracing."""
    import openvino.frontend
    from transformers.exporters import OpenVINOConfig, exporter_openvino
    from transformers.exporters.utils import patch_attributes

    config = OpenVINOConfig(dynamic=True, stateful=True)
    exporter = exporter_openvino.OpenVINOExporter()
    try:
        with patch_attributes([(exporter_openvino, "_run_openvino_decompositions", lambda original: by_known_names)]):
            return exporter.export(model, inputs, config).program
    except openvino.frontend.OpConversionFailure:
        return exporter.export(model, inputs, config).program


def by_known_names(program: Any) -> Any:
    """An exported program's operations that OpenVINO knows only by the names of their decomposition."""
    import torch

    aten = torch.ops.aten
    names = {
        aten.__and__.Tensor: aten.bitwise_and.Tensor,
        aten.contiguous.default: aten.clone.default,
        aten.reshape.default: aten.view.default,
    }
    for node in program.graph.nodes:
        node.target = names.get(node.target, node.target)
    return program


def save_tokenizer(checkpoint: Path, folder: Path) -> None:
    """For other programs that load the folder: ours tokenizes by tokenizer.json."""
    import openvino
    import transformers
    from openvino_tokenizers import convert_tokenizer

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
        encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:  # a tokenizer it does not know
        print(f"no openvino_tokenizer.xml for '{checkpoint}': {first_line(error)}", file=sys.stderr)
        return
    openvino.save_model(encoder, folder / "openvino_tokenizer.xml")
    openvino.save_model(decoder, folder / "openvino_detokenizer.xml")


def sentence(error: Exception) -> str:
    return first_line(error).partition(". ")[0]


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
