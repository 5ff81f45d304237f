"""Runs Olive over one checkpoint, offline and silent towards the world."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.child_process import end_with_parent, reports
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


def run(checkpoint: Path, precision: str, work: Path, report: Report) -> Path:
    """The folder with the finished model, in `work`. In a process of its own, whose memory is free again for the check.

    Raises CannotBuild.
    """
    command = [
        sys.executable,
        "-m",
        "enginehouse.optimize.toolchains.onnx.workflow",
        str(checkpoint),
        precision,
        str(work),
    ]
    environment = {**os.environ, **SILENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    last: dict[str, Any] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout  # it ends when its stdin closes, with this process
        for line in child.stdout:
            last = json.loads(line)
            if "stage" in last:
                report(last["stage"], last["fraction"])
    if "failed" in last:
        raise CannotBuild(last["failed"])
    if child.returncode or "made" not in last:
        raise CannotBuild(
            f"Olive's process ended with status {child.returncode} in the middle of its work; see the log"
        )
    return Path(last["made"])


def main(checkpoint: str, precision: str, work: str) -> None:
    send_line = reports()
    end_with_parent()

    def send(**message: Any) -> None:
        send_line(json.dumps(message).encode())

    try:
        made = run_here(Path(checkpoint), precision, Path(work), lambda stage, done: send(stage=stage, fraction=done))
        send(made=str(made))
    except CannotBuild as error:
        send(failed=str(error))


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
    result = run_workflow(workflow(checkpoint, precision, work), package_config=packages)
    output = work / "out"
    if passes.failures:
        reason = passes.failures.pop()
        raise CannotBuild(f"the model builder cannot make '{precision}' of '{checkpoint}': {reason!r}") from reason
    if result is None or not result.has_output_model() or not (output / "genai_config.json").exists():
        raise CannotBuild(f"Olive made no '{precision}' of '{checkpoint}'; the log says why")
    (output / "model_config.json").unlink(missing_ok=True)  # Olive's own
    return output


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
    own = checkpoint / "calibration.txt"
    text = own if own.exists() else Path(__file__).parents[2] / "quality" / "calibration.txt"
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
    main(*sys.argv[1:])
