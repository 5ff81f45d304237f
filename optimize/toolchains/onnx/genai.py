"""Drives the GenAI model builder over one checkpoint, with our quantization in the place of its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginehouse.optimize.artifact import Report
from enginehouse.optimize.toolchains.onnx.precisions import Precision
from enginehouse.optimize.toolchains.onnx.quantize import quantize_graph

BUILDER_PRECISIONS = {4: "int4", 8: "int8", 32: "fp32"}


def build(checkpoint: str, output: Path, precision: Precision, report: Report) -> None:
    """Writes a folder for ONNX Runtime GenAI."""
    from onnxruntime_genai.models import builder
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(checkpoint).get_text_config()
    tied = bool(getattr(text, "tie_word_embeddings", False))
    work = output.with_name(output.name + ".work")
    arguments = {
        "model_name": None,
        "input_path": checkpoint,
        "output_dir": str(output),
        "precision": BUILDER_PRECISIONS[precision.bits],
        "execution_provider": "cpu",
        "cache_dir": str(work),
    }
    # A window in the KV cache would keep sequences from sharing a graph, and prompts from being reused.
    options = ["prune_lm_head=true", "windowed_kv_cache=false"]
    if precision.bits != 32:
        options += [f"block_size={precision.block}", "shared_embeddings=false"]  # tying is quantize_graph's
    output.mkdir(parents=True, exist_ok=True)
    extra = builder.parse_extra_options(**arguments, extra_options=options)
    say_in_older_words(extra["hf_details"]["hf_config"])
    count = int(text.num_hidden_layers)
    with (
        replaced(builder.Model, "to_nbits", quantizing(precision, tied, report)),
        replaced(builder.Model, "get_attn_module", watched(builder.Model.get_attn_module, count, report)),
    ):
        builder.create_model(**arguments, **extra)
    shutil.rmtree(work, ignore_errors=True)


def say_in_older_words(config: Any) -> None:
    """Transformers 5 keeps Gemma-3's two rotations under the kinds of layers, and a window over all layers (Mistral,
    Phi-3) beside them; the builder would fail at the one and overlook the other."""
    rope = getattr(config, "rope_parameters", None) or {}
    if "sliding_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        config.rope_parameters = rope["full_attention"]
        config.rope_theta = rope["full_attention"]["rope_theta"]
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


def quantizing(precision: Precision, tied: bool, report: Report) -> Callable[[Any], Any]:
    def to_nbits(builder: Any) -> Any:
        builder.values.clear()  # it holds every weight
        quantize_graph(builder.model.graph, precision, tied, lambda fraction: report("quantize", fraction))
        return builder.model

    return to_nbits


def watched(get_attn_module: Callable[..., Any], count: int, report: Report) -> Callable[..., Any]:
    """The builder asks for each layer's attention as it reads the layer."""

    def get(builder: Any, layer_id: int, layer: Any) -> Any:
        report("convert", layer_id / count)
        return get_attn_module(builder, layer_id, layer)

    return get


class replaced:
    """A method of a class, for a while."""

    def __init__(self, kind: Any, name: str, function: Callable[..., Any]) -> None:
        self._kind, self._name, self._function = kind, name, function

    def __enter__(self) -> None:
        self._original = getattr(self._kind, self._name)
        setattr(self._kind, self._name, self._function)

    def __exit__(self, *_: object) -> None:
        setattr(self._kind, self._name, self._original)
