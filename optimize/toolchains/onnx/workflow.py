"""Runs Olive over one checkpoint, offline and silent towards the world."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.artifact import ELSEWHERE, CannotBuild, Report
from enginehouse.optimize.child_process import carry_out, run_blocking
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.toolchains.onnx.precisions import PRECISIONS

# Olive's telemetry has a heartbeat that only CI stops; the two others obey their own variable.
SILENT = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "CI": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
STRETCH, STRETCHES = 128, 32  # tokens of calibration text at a time, and how often


class Convert(msgspec.Struct, frozen=True):
    checkpoint: str
    precision: str
    work: str  # a folder


class Converted(msgspec.Struct, frozen=True, tag="converted"):
    folder: str


def run(checkpoint: Path, precision: str, work: Path, report: Report) -> Path:
    """The folder with the finished model, in `work`. In a process of its own, whose memory is free again for the check.

    Raises CannotBuild.
    """
    module, order = "enginehouse.optimize.toolchains.onnx.workflow", Convert(str(checkpoint), precision, str(work))
    return Path(run_blocking(module, order, Converted, report, "Olive's process", os.environ | SILENT).folder)


def convert(order: Convert, report: Report) -> Converted:
    return Converted(str(run_here(Path(order.checkpoint), order.precision, Path(order.work), report)))


def run_here(checkpoint: Path, precision: str, work: Path, report: Report) -> Path:
    import olive
    from olive.workflows import run as run_workflow

    from enginehouse.optimize.toolchains.onnx import passes

    passes.report = report
    packages = json.loads((Path(olive.__file__).parent / "olive_config.json").read_text(encoding="utf-8"))
    for name in ("GenaiBuild", "Half"):
        packages["passes"][name] = {
            "module_path": f"enginehouse.optimize.toolchains.onnx.passes.{name}",
            "supported_providers": ["*"],
            "supported_accelerators": ["*"],
            "supported_precisions": ["*"],
            "supported_algorithms": [],
            "supported_quantization_encodings": [],
        }
    output, result = work / "out", None
    try:
        result = run_workflow(workflow(checkpoint, precision, work), package_config=packages)
    except Exception:  # it logs some of what a pass raises, and raises others
        if not passes.failures:
            raise
    if passes.failures:
        reason, builder = passes.failures.pop(), "ONNX Runtime GenAI's model builder"
        if isinstance(reason, NotImplementedError):  # it names the folder
            raise CannotBuild(f"{builder} has no '{architecture(checkpoint)}'") from reason
        raise CannotBuild(f"{builder} breaks at '{architecture(checkpoint)}' ({reason!r}); {ELSEWHERE}") from reason
    if result is None or not result.has_output_model() or not (output / "genai_config.json").exists():
        raise CannotBuild(f"Olive made no '{precision}' of '{checkpoint}'; the log says why")
    (output / "model_config.json").unlink(missing_ok=True)  # Olive's own
    return output


def architecture(checkpoint: Path) -> str:
    return str((read_json(checkpoint / "config.json").get("architectures") or ["?"])[0])


def workflow(checkpoint: Path, precision: str, work: Path) -> dict[str, Any]:
    what = PRECISIONS[precision]
    passes: dict[str, Any] = {"build": {"type": "GenaiBuild", "precision": precision}}
    if what.method == "gptq":
        gptq = {"type": "Gptq", "bits": what.bits, "group_size": what.block, "data_config": "calibration"}
        passes = {"gptq": gptq, **passes}
    if what.half:
        passes = {**passes, "half": {"type": "Half"}}
    return {
        "input_model": {"type": "HfModel", "model_path": str(checkpoint), "task": "text-generation"},
        "systems": {
            "local": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "host": "local",
        "target": "local",
        "data_configs": [calibration_data(checkpoint)] if what.method == "gptq" else [],
        "passes": passes,
        "output_dir": str(work / "out"),
        "cache_dir": str(work / "cache"),
        "clean_cache": True,
        "no_artifacts": True,
        "log_severity_level": 2,
        "evaluate_input_model": False,
    }


def calibration_data(checkpoint: Path) -> dict[str, Any]:
    text = checkpoint / "calibration.txt"
    if not text.exists():
        text = Path(__file__).parents[2] / "quality" / "calibration.txt"
    load = {"text_file": str(text), "tokenizer": str(checkpoint), "length": STRETCH, "count": STRETCHES}
    return {
        "name": "calibration",
        "type": "DataContainer",
        "load_dataset_config": {"type": "enginehouse_calibration", "params": load},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "skip_post_process"},
        "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 1}},
    }


if __name__ == "__main__":
    carry_out(Convert, convert)
