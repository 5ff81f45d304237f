"""Our Olive pass around the GenAI model builder (Olive 0.13's own cannot drive GenAI 0.15 and later), and the
calibration text as an Olive dataset. Olive loads this module by its name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from olive.data.registry import Registry
from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from optimize.onnx_olive.precisions import PRECISIONS, Precision
from optimize.onnx_olive.quantize import quantize_graph
from optimize.recipe import Report

BUILDER_PRECISIONS = {4: "int4", 8: "int8", 32: "fp32"}
# Set by the build and read after it, for Olive's configs hold only data, and its log eats what a pass raises.
report: Report = lambda stage, fraction: None  # noqa: E731
failures: list[Exception] = []


class GenaiBuild(Pass):  # type: ignore[misc]
    """A Hugging Face checkpoint, quantized by Olive or not -> a folder for ONNX Runtime GenAI."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {"precision": PassConfigParam(type_=str, required=True)}

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: Any) -> bool:
        return False

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> ONNXModelHandler:
        output = Path(output_model_path)
        try:
            build(str(model.model_name_or_path), output, PRECISIONS[config.precision])
        except Exception as error:
            failures.append(error)
            raise
        files = sorted(str(file) for file in output.iterdir() if not file.name.startswith("model.onnx"))
        return ONNXModelHandler(str(output), onnx_file_name="model.onnx", model_attributes={"additional_files": files})


class Half(Pass):  # type: ignore[misc]
    """32-bit graph -> float16: what OnnxFloatToFloat16 does, but for the memory it takes."""

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        return {}

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> ONNXModelHandler:
        from optimize.onnx_olive.half import convert

        source, output = Path(model.model_path), Path(output_model_path)
        output.mkdir(parents=True, exist_ok=True)
        convert(source, output / "model.onnx")
        others = [file for file in source.parent.iterdir() if not file.name.startswith("model.onnx")]
        for file in others:
            shutil.copyfile(file, output / file.name)
        attributes = {"additional_files": sorted(str(output / file.name) for file in others)}
        return ONNXModelHandler(str(output), onnx_file_name="model.onnx", model_attributes=attributes)


def build(checkpoint: str, output: Path, precision: Precision) -> None:
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
        replaced(builder.Model, "to_nbits", quantizing(precision, tied)),
        replaced(builder.Model, "get_attn_module", watched(builder.Model.get_attn_module, count)),
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


def quantizing(precision: Precision, tied: bool) -> Callable[[Any], Any]:
    def to_nbits(own: Any) -> Any:
        own.values.clear()  # it holds every weight
        quantize_graph(own.model.graph, precision, tied, lambda fraction: report("quantize", fraction))
        return own.model

    return to_nbits


def watched(get_attn_module: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The builder asks for each layer's attention as it reads the layer."""

    def get(own: Any, layer_id: int, layer: Any) -> Any:
        report("convert", layer_id / count)
        return get_attn_module(own, layer_id, layer)

    return get


class replaced:
    """A method of a class, for a while."""

    def __init__(self, kind: Any, name: str, function: Callable[..., Any]) -> None:
        self._kind, self._name, self._function = kind, name, function

    def __enter__(self) -> None:
        self._own = getattr(self._kind, self._name)
        setattr(self._kind, self._name, self._function)

    def __exit__(self, *_: object) -> None:
        setattr(self._kind, self._name, self._own)


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]


@Registry.register_dataset("enginehouse_calibration")  # type: ignore[untyped-decorator]
def calibration(text_file: str, tokenizer: str, length: int, count: int, **_: Any) -> Rows:
    """The text in `count` stretches of `length` tokens."""
    from transformers import AutoTokenizer

    text = Path(text_file).read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(tokenizer)(text, add_special_tokens=False)["input_ids"]
    stretches = [torch.tensor(ids[start : start + length]) for start in range(0, len(ids) - length + 1, length)]
    return Rows([({"input_ids": row, "attention_mask": torch.ones_like(row)}, row) for row in stretches[:count]])
