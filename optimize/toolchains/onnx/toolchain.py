"""ONNX Runtime GenAI folders: built by Olive from a Hugging Face checkpoint, loaded and run before published."""

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.optimize.artifact import (
    CannotBuild,
    Report,
    Source,
    Toolchain,
    bytes_as_checkpoint,
    bytes_in_16_bits,
    copy_companions,
)
from enginehouse.optimize.sources.gguf_checkpoint import architecture_of, config_of
from enginehouse.optimize.sources.quantizations import already_quantized
from enginehouse.optimize.toolchains.onnx.precisions import PRECISIONS

if TYPE_CHECKING:
    import numpy as np

TOOLCHAIN_VERSION = "1"  # raise it with every change to the bytes this toolchain writes
# Those whose text was equal to the reference implementation's; the builder knows more, some of which it gets wrong. Not
# SmolLM3: in its layers without rotation the builder looks for positions that its graph does not have.
FAMILIES = {
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM",
    "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GraniteForCausalLM", "Ernie4_5ForCausalLM",
}  # fmt: skip
ROTATIONS = {"default", "llama3"}  # of these, too: the builder's linear and yarn give other text, or fail
OVERHEAD_BYTES = 128 << 20
RESIDENT_BYTES = 300 << 20  # of the process, without weights: torch and Olive


def build(source: Source, precision: str, folder: Path, report: Report) -> None:
    from enginehouse.optimize.toolchains.onnx.check import check
    from enginehouse.optimize.toolchains.onnx.workflow import run

    checkpoint, work = Path(source.path), folder / "work"
    work.mkdir()
    try:
        report("convert", 0.0)
        made = run(checkpoint, precision, work, report)
        for file in sorted(made.iterdir()):
            if file.is_file():
                shutil.move(file, folder / file.name)
    finally:
        shutil.rmtree(work)
    copy_companions(checkpoint, folder)
    check(folder, PRECISIONS[precision], report)


def logits(path: Path, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
    from enginehouse.optimize.toolchains.onnx.logits import logits

    return logits(path, sequences)


def refuses(source: Source) -> str | None:
    """Looks at configs only."""
    if source.kind not in ("checkpoint", "gguf"):
        return f"an onnx model is not built from '{source.kind}'; give a Hugging Face folder"
    try:
        config = config_of(source)
    except CannotBuild as refusal:
        return str(refusal)
    if reason := already_quantized(config):
        return reason
    if foreign := sorted(rotations(config) - ROTATIONS):
        return f"rope variant '{foreign[0]}' is not built for ONNX Runtime here; known: {', '.join(sorted(ROTATIONS))}"
    if source.kind != "gguf" and not (Path(source.path) / "tokenizer.json").exists():
        return f"'{source.id}' has no tokenizer.json"
    return None


def proven(source: Source) -> bool:
    return architecture_of(source) in FAMILIES


def rotations(config: dict[str, Any]) -> set[str]:
    """The rope variants a config names; transformers 5 may name one for each kind of layers."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    return {str(kind.get("rope_type") or kind.get("type") or "default") for kind in kinds}


def needs_bytes(source: Source, precision: str) -> int:
    """Bytes on disk while building: the result, and what its last pass reads."""
    what, weights = PRECISIONS[precision], source.parameters or source.bytes // 2
    intermediate = 4 * weights if what.half else bytes_as_checkpoint(source) if what.method == "gptq" else 0
    return int(weights * what.bits_per_weight() / 8) * 2 + intermediate + OVERHEAD_BYTES


def memory_bytes(source: Source, precision: str) -> int:
    """Measured on 0.6B: 1.85 to 2.0 times the 16-bit weights for 4 bits, 2.3 for 8 and 32, 2.8 for F16."""
    what = PRECISIONS[precision]
    ratio = 2.8 if what.half else 2.0 if what.bits == 4 else 2.3
    return int(bytes_in_16_bits(source) * ratio) + RESIDENT_BYTES


def unavailable() -> str | None:
    needed = {
        "onnxruntime": "onnxruntime", "onnxruntime_genai": "onnxruntime-genai", "olive": "olive-ai", "onnx": "onnx",
        "onnx_ir": "onnx-ir", "torch": "torch", "transformers": "transformers",
    }  # fmt: skip
    for module, distribution in needed.items():
        if importlib.util.find_spec(module) is None:
            return f"'{distribution}' is not installed; pip install 'enginehouse[onnx,optimize]'"
    return None


def versions() -> dict[str, str]:
    tools = ("onnxruntime", "onnxruntime-genai", "olive-ai", "onnx-ir", "transformers")
    return {"enginehouse-onnx": TOOLCHAIN_VERSION, **{tool: importlib.metadata.version(tool) for tool in tools}}


TOOLCHAIN = Toolchain(
    format="onnx",
    precisions={
        "int4": "INT4_B32_H8",
        "int8": "INT8_B32",
        "16bit": "F16",
        "f16": "F16",
        "f32": "F32",
        **{name: name for name in PRECISIONS},
    },
    unavailable=unavailable,
    versions=versions,
    refuses=refuses,
    needs_bytes=needs_bytes,
    memory_bytes=memory_bytes,
    seconds_per_gib={"convert": 5, "quantize": 8, "check": 2},
    start_seconds=8.0,
    build=build,
    logits=logits,
    entry="",
    ladder={
        "INT4_B32_H8": "blocks of 32 and the head in eight bits: pocket, our texts: 0.112; 128 and four bits 0.180",
        "INT4_B32_MIXED": "four bits for gate, up and o, eight else: SmolLM2 0.075, INT4_B32_H8 0.332",
        "INT8_B32": "all in eight bits (0.004)",
        "F32": "the checkpoint itself, in the arithmetic of the graph",
    },
    proven=proven,
)
