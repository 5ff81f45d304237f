"""OpenVINO IR: exported by transformers' own exporter, weights compressed by NNCF, tokenizer by openvino_tokenizers."""

import gc
import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.optimize.artifact import (
    CannotBuild,
    Export,
    Report,
    Source,
    Toolchain,
    bytes_as_checkpoint,
    bytes_in_16_bits,
    copy_companions,
)
from enginehouse.optimize.sources.gguf_checkpoint import architecture_of, config_of
from enginehouse.optimize.sources.quantizations import already_quantized
from enginehouse.optimize.sources.resolve import copy_beside_weights
from enginehouse.optimize.toolchains.openvino import arithmetic
from enginehouse.optimize.toolchains.openvino.export import DTYPES, export

if TYPE_CHECKING:
    import numpy as np

TOOLCHAIN_VERSION = "3"  # raise it with every change to the bytes this toolchain writes
MODEL, WEIGHTS = "openvino_model.xml", "openvino_model.bin"
EXPORTED = "exported"  # in an IR of ours that artifacts are made of
DISTRIBUTIONS = {
    "openvino": "openvino",
    "openvino_genai": "openvino-genai",
    "openvino_tokenizers": "openvino-tokenizers",
    "nncf": "nncf",
    "torch": "torch",
    "transformers": "transformers",
}
# Those whose export gives the reference implementation's tokens, which every run of the tests shows for the first six
# and ENGINEHOUSE_ALL_FAMILIES=1 for the rest. Not among them: Gemma2, whose attention the exporter cannot take.
FAMILIES = (
    "Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM",
    "Gemma3ForCausalLM", "GemmaForCausalLM", "CohereForCausalLM", "GraniteForCausalLM", "Ministral3ForCausalLM",
    "MixtralForCausalLM", "Olmo2ForCausalLM", "PhiForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM",
    "SmolLM3ForCausalLM", "StableLmForCausalLM",
)  # fmt: skip
# Their frequencies depend on the length of the text, which the export freezes.
FROZEN_ROPE = ("dynamic", "longrope")
# GenAI stops at Granite 4; tiny models of Qwen3-Next and Qwen3.5 were not exported after 300 s.
LINEAR_ATTENTION = "linear_attention"
CONVERTED = ("F32", "BF16", "F16")
# A mode, a group size, and how the scales are found: AWQ without data, or AWQ and scale estimation on calibration text.
INT4 = tuple(
    f"INT4_{mode}_G{group}{method}"
    for mode in ("ASYM", "SYM")
    for group in (32, 64, 128)
    for method in ("", "_AWQ", "_AWQ_SE")
)
MIXED = tuple(f"INT4_{mode}_G{group}_MIXED" for mode in ("ASYM", "SYM") for group in (32, 64, 128))
PRECISIONS = (*CONVERTED, "INT8_ASYM", "INT8_SYM", *INT4, *MIXED)
COMPRESSED = ('element_type="u4"', 'element_type="i4"', 'element_type="u8"', 'element_type="i8"')
OVERHEAD_BYTES = 64 * 2**20  # tokenizers, and alignment
RESIDENT_BYTES = 300 << 20  # of the process, without weights: torch


def export_precision(source: Source, precision: str) -> str:
    """The checkpoint's own but where another is wanted: 32-bit arithmetic over 16-bit weights is what 32-bit weights
    would give, at half the size and the memory."""
    if precision in CONVERTED and precision != "F32":
        return precision
    config = config_of(source)
    text = config.get("text_config") or config
    stored = text.get("dtype") or text.get("torch_dtype")
    return next((name for name, dtype in DTYPES.items() if dtype == stored), "F32")


def make_export(source: Source, precision: str, folder: Path, report: Report) -> None:
    silence()
    if reason := refuses(source):
        raise CannotBuild(reason)
    copy_beside_weights(Path(source.path), folder)
    export(Path(source.path), folder / MODEL, precision, report)
    (folder / EXPORTED).write_text(precision)
    gc.collect()  # the model and its graph hold each other; neither may be in memory beside what comes next


def build(source: Source, precision: str, folder: Path, report: Report) -> None:
    silence()
    from enginehouse.optimize.toolchains.openvino.check import check
    from enginehouse.optimize.toolchains.openvino.compress import compress

    if reason := refuses(source):
        raise CannotBuild(reason)
    origin = Path(source.path)
    copy_companions(origin, folder)
    for graph in origin.glob("openvino_*tokenizer.*"):
        shutil.copyfile(graph, folder / graph.name)
    if precision not in CONVERTED:
        compress(origin / MODEL, folder / MODEL, precision, origin, report)
    elif (origin / EXPORTED).exists():
        for name in (MODEL, WEIGHTS):
            share(origin / name, folder / name)
    else:
        raise CannotBuild(f"an IR is not converted to {precision}; serve it as it is, or in int8 or int4")
    if precision == "F32":
        (folder / arithmetic.FILE).write_text("f32")
    gc.collect()
    check(folder, report)


def silence() -> None:
    """OpenVINO and NNCF report what they do to Google Analytics; without this package both have a stub for it."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]


def share(file: Path, other: Path) -> None:
    """Another name of the same bytes, or a copy on disks that have no such thing."""
    try:
        other.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, other)


def logits(path: Path, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
    from enginehouse.optimize.toolchains.openvino.logits import logits

    return logits(path, sequences)


def refuses(source: Source) -> str | None:
    """Looks at configs and headers only."""
    folder = Path(source.path)
    if source.kind not in ("checkpoint", "gguf", "openvino"):
        return f"an OpenVINO IR is not built from '{source.kind}'; give a Hugging Face folder or an IR of 16 bits"
    if source.kind != "gguf" and not (folder / "tokenizer.json").exists():
        return f"'{source.id}' has no tokenizer.json; only fast tokenizers are read"
    if source.kind == "openvino":
        graph = (folder / MODEL).read_text(encoding="utf-8")
        if any(mark in graph for mark in COMPRESSED):
            return f"'{source.id}' is compressed already; serve it as it is, or give the 16-bit model"
        return None
    try:
        config = config_of(source)
    except CannotBuild as refusal:
        return str(refusal)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (kind := rope.get("rope_type", rope.get("type"))) in FROZEN_ROPE:
        return f"'{source.id}' has '{kind}' position embeddings, which the OpenVINO exporter does not carry over"
    if LINEAR_ATTENTION in ((config.get("text_config") or config).get("layer_types") or ()):
        return (
            f"'{source.id}' has layers of '{LINEAR_ATTENTION}', which OpenVINO GenAI does not run as they are exported"
        )
    return already_quantized(config)


def proven(source: Source) -> bool:
    return source.kind == "openvino" or architecture_of(source) in FAMILIES


def needs_bytes(source: Source, precision: str) -> int:
    """Bytes on disk while building: the result, and beside it the export it is compressed from."""
    weights = source.parameters or source.bytes // 2
    if precision in CONVERTED:
        return (bytes_as_checkpoint(source) if precision == "F32" else weights * 2) + OVERHEAD_BYTES
    exported = 0 if source.kind == "openvino" else bytes_as_checkpoint(source)
    bytes_each = 1.05 if precision.startswith("INT8") or precision in MIXED else 0.75  # embeddings stay in 8 bits
    return int(weights * bytes_each) + exported + OVERHEAD_BYTES


def memory_bytes(source: Source, precision: str) -> int:
    """Measured on 0.6B: 2.75 times the 16-bit weights exported as they are, 2.2 compressed."""
    return int(bytes_in_16_bits(source) * (2.75 if precision in CONVERTED else 2.2)) + RESIDENT_BYTES


def unavailable() -> str | None:
    for module, distribution in DISTRIBUTIONS.items():
        if importlib.util.find_spec(module) is None:
            extra = "optimize" if module in ("nncf", "torch", "transformers") else "openvino"
            return f"'{distribution}' is not installed; pip install 'enginehouse[{extra}]'"
    return None


def versions() -> dict[str, str]:
    tools = {distribution: importlib.metadata.version(distribution) for distribution in DISTRIBUTIONS.values()}
    return {"enginehouse-openvino": TOOLCHAIN_VERSION, **tools}


TOOLCHAIN = Toolchain(
    format="openvino",
    precisions={
        "int4": "INT4_ASYM_G64",
        "int8": "INT8_ASYM",
        "16bit": "BF16",
        "bf16": "BF16",
        "f16": "F16",
        "f32": "F32",
        **{name: name for name in PRECISIONS},
    },
    unavailable=unavailable,
    versions=versions,
    refuses=refuses,
    needs_bytes=needs_bytes,
    memory_bytes=memory_bytes,
    seconds_per_gib={"convert": 20, "quantize": 20, "check": 5},
    start_seconds=10.0,
    build=build,
    logits=logits,
    entry="",
    ladder={
        "INT4_ASYM_G64": "half the divergence of symmetric 128 (pocket, our texts: 0.079, 0.139); 32 is not closer",
        "INT4_ASYM_G32_MIXED": "four bits for gate and up alone: SmolLM2 0.064, INT4_ASYM_G32 0.335",
        "INT8_ASYM": "one scale for a row (0.008)",
        "BF16": "the checkpoint itself, in the arithmetic of the CPU",
    },
    proven=proven,
    export=Export(export_precision, make_export),
)
