"""ONNX Runtime beyond the contract: what is built, what is refused, and that nobody is told of it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enginehouse.optimize.artifact import CannotBuild, copy_companions
from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains.onnx.genai import build as build_without_olive
from enginehouse.optimize.toolchains.onnx.precisions import PRECISIONS
from enginehouse.optimize.toolchains.onnx.toolchain import TOOLCHAIN
from enginehouse.runtimes.contract import Engine, Load, Sampling
from enginehouse.runtimes.engines.onnx.engine import RUNTIME, load
from enginehouse.runtimes.engines.onnx.slots import Cache
from tests.checkpoints import make_checkpoint, sentencepiece_tokenizer

pytestmark = pytest.mark.skipif(
    bool(RUNTIME.unavailable() or TOOLCHAIN.unavailable()), reason=str(RUNTIME.unavailable() or TOOLCHAIN.unavailable())
)

TEXTS = ["The quick brown fox jumps over the lazy dog and runs away", "def add(a, b):", "Once upon a time"]
SENTENCEPIECE = {"LlamaForCausalLM": "legacy", "Phi3ForCausalLM": "legacy", "Gemma3ForCausalLM": "never"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_theta": 1e4}
PHI3 = {"original_max_position_embeddings": 256}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("Qwen3ForCausalLM", {}),
    ("Qwen2ForCausalLM", {}),
    ("LlamaForCausalLM", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}}),
    ("LlamaForCausalLM", {"tie_word_embeddings": True, "attention_bias": True}),
    ("MistralForCausalLM", {"sliding_window": 16}),
    ("Phi3ForCausalLM", PHI3 | {"sliding_window": 16}),
    ("Gemma3ForCausalLM", {}),
]


def silent(stage: str, fraction: float) -> None:
    """Nobody watches these builds."""


def make(folder: Path, architecture: str, **config: Any) -> Path:
    scheme = SENTENCEPIECE.get(architecture)
    return make_checkpoint(
        folder, architecture, tokenizer=sentencepiece_tokenizer(scheme) if scheme else None, **config
    )


def build(checkpoint: Path, precision: str, folder: Path) -> Path:
    folder.mkdir()
    TOOLCHAIN.build(resolve(str(checkpoint)), precision, folder, silent)
    return folder


def open_engine(folder: Path, context: int = 256, free_bytes: int = 0, **options: Any) -> Engine:
    return load(Load("onnx", str(folder), context, 4, 2, free_bytes, options), lambda fraction: None)


def generate(engine: Engine, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Greedy continuations, all at once, of `count` tokens each."""
    out: list[list[int]] = [[] for _ in prompts]
    for job, ids in enumerate(prompts):
        engine.add(job, ids, Sampling(max_tokens=count, temperature=0, ignore_eos=True))
    while any(len(ids) < count for ids in out):
        for token in engine.step():
            out[token.job].append(token.id)
    return out


def continue_by_reference(checkpoint: Path, prompts: list[list[int]], count: int) -> list[list[int]]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    out = []
    for ids in prompts:
        text = list(ids)
        with torch.no_grad():
            for _ in range(count):
                text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        out.append(text[len(ids) :])
    return out


@pytest.mark.parametrize(("architecture", "config"), CASES, ids=lambda part: str(part)[:24])
def test_each_family_says_what_the_reference_implementation_says(
    architecture: str, config: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = make(tmp_path / "checkpoint", architecture, **config)
    artifact = tmp_path / "artifact"
    build_without_olive(str(checkpoint), artifact, PRECISIONS["F32"], silent)
    copy_companions(checkpoint, artifact)
    engine = open_engine(artifact, path="slots", prefill_chunk=16)
    prompts = [engine.encode(text) for text in TEXTS]
    assert generate(engine, prompts, 24) == continue_by_reference(checkpoint, prompts, 24)


@pytest.mark.parametrize("precision", ["INT8_B32", "INT4_B32_KQUANT_H8", "INT4_B32_GPTQ_H8", "INT4_B32_MIXED", "F16"])
@pytest.mark.parametrize("path", ["slots", "generator"])
def test_every_kind_of_precision_runs_on_both_paths_alike(precision: str, path: str, tiny: dict[str, Path]) -> None:
    folder = tiny[precision]
    assert not [file for file in folder.iterdir() if file.is_dir()]
    engine = open_engine(folder, path=path)
    plain = open_engine(folder, path="slots", prefill_chunk=7)
    prompts = [engine.encode(text) for text in TEXTS]
    assert generate(engine, prompts[:1], 8) == generate(plain, prompts[:1], 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny Qwen3 in each of these precisions; it brings a calibration text of its own."""
    folder = tmp_path_factory.mktemp("tiny-onnx")
    checkpoint = make(folder / "checkpoint", "Qwen3ForCausalLM", hidden_size=128)
    (checkpoint / "calibration.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    names = ("F32", "INT8_B32", "INT4_B32_KQUANT_H8", "INT4_B32_GPTQ_H8", "INT4_B32_MIXED", "F16")
    return {name: build(checkpoint, name, folder / name) for name in names}


def test_a_mixture_keeps_four_bits_for_what_loses_least(tiny: dict[str, Path]) -> None:
    import onnx

    graph = onnx.load(tiny["INT4_B32_MIXED"] / "model.onnx", load_external_data=False).graph
    quantized = [node for node in graph.node if node.op_type == "MatMulNBits"]
    bits = {node.name: next(one.i for one in node.attribute if one.name == "bits") for node in quantized}
    assert all(
        width == (4 if any(part in name for part in ("gate_proj", "up_proj", "o_proj")) else 8)
        for name, width in bits.items()
    )
    assert set(bits.values()) == {4, 8}


def test_int8_shrinks_the_embedding_too(tiny: dict[str, Path]) -> None:
    def size(name: str) -> int:
        return (tiny[name] / "model.onnx.data").stat().st_size

    rotations = 2 * 256 * 16 * 4  # sine and cosine of every position stay as they are
    assert size("INT8_B32") - rotations < 0.4 * (size("F32") - rotations)


def test_int8_answers_as_the_reference_implementation_does(folder: Path, reference: Any) -> None:
    async def artifact() -> str:
        source = await locate("builtin:pocket", None, silent)
        return (
            await prepare(source, TOOLCHAIN, TOOLCHAIN.precisions["int8"], folder / "cache", silent, rules=None)
        ).path

    engine = open_engine(Path(asyncio.run(artifact())))
    ids = engine.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    expected = reference.greedy(ids, 12)
    assert generate(engine, [ids], 12)[0][: len(expected)] == expected


def test_a_folder_that_others_made_needs_no_config_json(checkpoint: Path, tmp_path: Path) -> None:
    """As the builder makes it: with the logits of every position."""
    theirs, builder = tmp_path / "theirs", [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    options = ["-i", str(checkpoint), "-o", str(theirs), "-p", "fp32", "-e", "cpu", "-c", str(tmp_path / "work")]
    subprocess.run([*builder, *options], check=True, capture_output=True)
    assert not (theirs / "config.json").exists()
    assert resolve(str(theirs)).kind == "onnx"
    engine = open_engine(theirs, 10**6, path="slots", prefill_chunk=3)
    prompts = [engine.encode(text) for text in TEXTS]
    assert engine.facts.context_length == 256
    assert generate(engine, prompts, 8) == continue_by_reference(checkpoint, prompts, 8)


def test_a_cache_beyond_the_free_memory_is_refused_with_the_remedy(tiny: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"a KV cache of 1024 tokens takes .* lower 'context', 'slots' or"):
        open_engine(tiny["F32"], free_bytes=1 << 19)


def test_a_graph_that_is_not_ours_goes_to_generators(tiny: dict[str, Path], tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    shutil.copytree(tiny["F32"], apart)
    config = json.loads((apart / "genai_config.json").read_text())
    config["search"]["past_present_share_buffer"] = False
    (apart / "genai_config.json").write_text(json.dumps(config))
    engine, own = open_engine(apart), open_engine(tiny["F32"])
    prompts = [engine.encode(text) for text in TEXTS]
    assert generate(engine, prompts, 8) == generate(own, prompts, 8)
    with pytest.raises(ValueError, match="'slots' cannot be had: its attention does not work in place"):
        open_engine(apart, path="slots")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the pages")
def test_forgotten_tokens_give_their_memory_back_and_their_neighbours_stay() -> None:
    import numpy as np

    cache = Cache((2, 2, 1000, 64), np.dtype("float32"))
    cache.rows[:] = 1
    cache.release(0, 100, 900)
    assert (cache.rows[0, :, :100] == 1).all()
    assert (cache.rows[0, :, 900:] == 1).all()
    assert (cache.rows[1] == 1).all()
    assert cache.rows[0, :, 100:900].sum() < 2 * 2 * 4096 / 4  # a page at each end may be shared


def test_exchanged_rows_hold_each_others_tokens() -> None:
    import numpy as np

    cache = Cache((2, 2, 100, 64), np.dtype("float32"))
    cache.rows[0, :, :70], cache.rows[1, :, :30] = 1, 2
    cache.exchange(0, 1, 70, 30)
    assert (cache.rows[0, :, :30] == 2).all()
    assert (cache.rows[1, :, :70] == 1).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope variant 'yarn' is not built"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": None}, "rope variant 'linear'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantized already"),
    ],
)
def test_what_does_not_come_through_is_refused(
    change: dict[str, Any], sentence: str, checkpoint: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | change))
    assert sentence in str(TOOLCHAIN.refuses(resolve(str(changed))))


def test_a_checkpoint_that_breaks_in_the_builder_is_refused_in_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    source, weights = resolve(str(broken)), broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])  # after it was looked at
    (tmp_path / "artifact").mkdir()
    with pytest.raises(CannotBuild, match="model builder breaks at 'Qwen3ForCausalLM'"):
        TOOLCHAIN.build(source, "F32", tmp_path / "artifact", silent)


def test_a_family_that_the_builder_does_not_have_is_named(tmp_path: Path) -> None:
    source = resolve(str(make_checkpoint(tmp_path / "model", "Olmo2ForCausalLM")))
    (tmp_path / "artifact").mkdir()
    with pytest.raises(CannotBuild, match=r"^ONNX Runtime GenAI's model builder has no 'Olmo2ForCausalLM'$"):
        TOOLCHAIN.build(source, "F32", tmp_path / "artifact", silent)


def test_one_that_the_builder_breaks_at_is_on_trial(tmp_path: Path) -> None:
    """Its layers without rotation, every fourth."""
    source = resolve(str(make_checkpoint(tmp_path / "model", "SmolLM3ForCausalLM", num_hidden_layers=4)))
    assert not TOOLCHAIN.proven(source)
    assert TOOLCHAIN.refuses(source) is None


BUILD_AND_SERVE = """
import sys
from pathlib import Path
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains.onnx import TOOLCHAIN
from enginehouse.runtimes.contract import Load, Sampling
from enginehouse.runtimes.engines.onnx.engine import load
if sys.argv[1] == "build":
    TOOLCHAIN.build(resolve(sys.argv[2]), "INT4_B32", Path(sys.argv[3]), lambda stage, fraction: None)
else:
    for path in ("slots", "generator"):
        engine = load(Load("onnx", sys.argv[3], 64, 2, 1, 0, {"path": path}), lambda fraction: None)
        engine.add(0, [1, 2, 3], Sampling(max_tokens=2))
        engine.step()
"""


def test_neither_building_nor_serving_leaves_telemetry_behind(checkpoint: Path, tmp_path: Path) -> None:
    """Where they may, the three packages write a device id and queued events below the home or cache folder."""
    home, artifact = tmp_path / "home", tmp_path / "artifact"
    home.mkdir()
    artifact.mkdir()
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    where = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(Path.cwd() / "src")}
    for act, own in (("build", {}), ("serve", RUNTIME.environment)):
        command = [sys.executable, "-c", BUILD_AND_SERVE, act, str(checkpoint), str(artifact)]
        done = subprocess.run(command, env={**inherited, **where, **own}, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    # matplotlib, which torch's friends import where the benchmarks have brought it, lists the fonts it has found.
    written = [str(file) for file in home.rglob("*") if file.is_file() and "matplotlib" not in file.parts]
    assert written == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "home"]
