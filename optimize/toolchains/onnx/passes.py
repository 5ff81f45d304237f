"""Our Olive pass around the GenAI model builder (Olive 0.13's own cannot drive GenAI 0.15 and later), and the
calibration text as an Olive dataset. Olive loads this module by its name."""

import shutil
from pathlib import Path
from typing import Any

import torch
from olive.data.registry import Registry
from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from enginehouse.optimize.artifact import Report
from enginehouse.optimize.toolchains.onnx.genai import build
from enginehouse.optimize.toolchains.onnx.precisions import PRECISIONS

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
            build(str(model.model_name_or_path), output, PRECISIONS[config.precision], report)
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
        from enginehouse.optimize.toolchains.onnx.half import convert

        source, output = Path(model.model_path), Path(output_model_path)
        output.mkdir(parents=True, exist_ok=True)
        convert(source, output / "model.onnx")
        others = [file for file in source.parent.iterdir() if not file.name.startswith("model.onnx")]
        for file in others:
            shutil.copyfile(file, output / file.name)
        attributes = {"additional_files": sorted(str(output / file.name) for file in others)}
        return ONNXModelHandler(str(output), onnx_file_name="model.onnx", model_attributes=attributes)


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
