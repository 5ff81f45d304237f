"""The quality gate: every artifact, run by its own engine, is compared with its source."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
import safetensors.torch
import tokenizers

from enginehouse.config.schema import Limits, Optimize
from enginehouse.optimize.artifact import Artifact, CannotBuild, Manifest, Quality, Source, bits
from enginehouse.optimize.prepare import prepare
from enginehouse.optimize.quality.answers import ANSWER_TOKENS, BEST
from enginehouse.optimize.quality.evidence import FEWEST
from enginehouse.optimize.quality.gate import judge
from enginehouse.optimize.quality.references import MADE, load, make
from enginehouse.optimize.quality.texts import passages
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains import toolchains
from tests.checkpoints import outliers, pocket

LIMITS = Optimize()


def quiet(stage: str, fraction: float) -> None: ...


def build(source: Source, kind: str, precision: str, cache: Path, gate: bool = True) -> Artifact:
    toolchain = toolchains()[kind]
    if reason := toolchain.unavailable():
        pytest.skip(reason)
    return asyncio.run(prepare(source, toolchain, precision, cache, quiet, LIMITS if gate else None))


def holds(quality: Quality, limits: Limits) -> bool:
    return (
        quality.divergence <= limits.divergence
        and quality.divergence_99 <= limits.worst
        and quality.agreement >= limits.agreement
        and quality.perplexity <= limits.perplexity
        and (quality.accuracy is None or quality.accuracy >= limits.accuracy)
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The pocket model, which four bits destroy."""
    return resolve(str(outliers(tmp_path_factory.mktemp("fragile") / "model", 64)))


@pytest.fixture
def own(tmp_path: Path) -> Source:
    return resolve(str(pocket(tmp_path / "model")))


@pytest.mark.parametrize(
    ("kind", "precision"), [("gguf", "BF16"), ("openvino", "BF16"), ("onnx", "F32"), ("mlx", "bf16")]
)
def test_an_artifact_of_sixteen_bits_or_more_is_its_source(
    kind: str, precision: str, fragile: Source, cache: Path
) -> None:
    quality = build(fragile, kind, precision, cache).quality
    assert quality and quality.reference == "transformers"
    assert quality.divergence < 0.001
    assert quality.agreement > 0.98
    assert quality.perplexity == pytest.approx(1, abs=0.005)
    assert quality.tokens > 100


@pytest.mark.parametrize(
    ("kind", "four", "eight"),
    [
        ("gguf", "Q4_K_M", "Q8_0"),
        ("openvino", "INT4_ASYM_G64", "INT8_ASYM"),
        ("onnx", "INT4_B32_H8", "INT8_B32"),
        ("mlx", "4bit-g64", "8bit-g64"),
    ],
)
def test_the_gate_tells_a_model_that_four_bits_destroy_from_one_in_eight(
    kind: str, four: str, eight: str, fragile: Source, cache: Path
) -> None:
    source = fragile
    if kind == "openvino":  # already exported above, and a source like any other
        exported = Path(build(fragile, kind, "BF16", cache).path)
        shutil.copyfile(Path(fragile.path) / "eval.jsonl", exported / "eval.jsonl")
        source = resolve(str(exported))
    destroyed, passing = (build(source, kind, precision, cache).quality for precision in (four, eight))
    assert destroyed and passing
    assert not holds(destroyed, LIMITS.int4)
    assert holds(passing, LIMITS.int8)


def test_the_source_is_run_once_for_all_its_artifacts(own: Source, tmp_path: Path) -> None:
    build(own, "gguf", "Q4_0", tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "references").iterdir()
    before = file.stat()
    build(own, "gguf", "Q8_0", tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "references").iterdir()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_artifact_that_was_not_compared_is_when_someone_asks(own: Source, tmp_path: Path) -> None:
    hasty = build(own, "gguf", "Q8_0", tmp_path / "cache", gate=False)
    assert hasty.quality is None
    weights = Path(hasty.path).stat()
    judged = build(own, "gguf", "Q8_0", tmp_path / "cache")
    assert judged.quality and judged.path == hasty.path
    assert Path(judged.path).stat().st_mtime_ns == weights.st_mtime_ns
    manifest = msgspec.json.decode((Path(judged.path).parent / "manifest.json").read_bytes(), type=Manifest)
    assert manifest.quality == judged.quality


def test_llama_cpp_stands_in_for_transformers(own: Source, tmp_path: Path) -> None:
    """As it does where torch is not installed."""
    found = {}
    for runner in ("transformers", "llamacpp"):
        (tmp_path / runner).mkdir()
        make(own, runner, passages(own), tmp_path / runner, lambda fraction: None)
        found[runner] = load(tmp_path / runner / "reference.npz")
    assert found["llamacpp"].sequences == found["transformers"].sequences
    assert found["llamacpp"].actual == pytest.approx(found["transformers"].actual, abs=0.05)
    assert (found["llamacpp"].ids[:, 0] == found["transformers"].ids[:, 0]).mean() > 0.98


def test_a_gguf_file_is_compared_with_itself(own: Source, tmp_path: Path) -> None:
    file = build(own, "gguf", "BF16", tmp_path / "cache", gate=False).path
    quality = build(resolve(file), "gguf", "Q8_0", tmp_path / "cache").quality
    assert quality and quality.reference == "llamacpp"
    assert quality.divergence < LIMITS.int8.divergence
    assert quality.of_texts == BEST  # its own answers, for a file has no texts beside it


@pytest.mark.parametrize("runner", ["transformers", "llamacpp"])
def test_where_there_are_no_texts_the_source_answers_prompts(own: Source, tmp_path: Path, runner: str) -> None:
    (Path(own.path) / "eval.jsonl").unlink()
    files = []
    for again in ("once", "again"):
        (tmp_path / again).mkdir()
        make(own, runner, [], tmp_path / again, lambda fraction: None)
        files.append(load(tmp_path / again / MADE))
    first, second = files
    assert first.sequences == second.sequences, "drawn with a seed"
    assert len(first.sequences) == BEST
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(own.path) / "tokenizer.json"))
    asked = [tokenizer.decode(one.ids[: one.first]) for one in first.sequences]
    assert any("Write a haiku about the first snow." in prompt for prompt in asked)
    assert all(0 < len(one.ids) - one.first <= ANSWER_TOKENS for one in first.sequences)
    assert not first.has_answers


def test_a_few_texts_refuse_an_artifact_and_all_pass_it(own: Source, fragile: Source, tmp_path: Path) -> None:
    (Path(own.path) / "eval.jsonl").unlink()
    passed = build(resolve(own.path), "gguf", "Q8_0", tmp_path / "good").quality
    refused = build(fragile, "gguf", "Q4_0", tmp_path / "bad").quality
    assert passed and passed.texts == passed.of_texts
    assert refused and FEWEST <= refused.texts < refused.of_texts


def test_a_models_own_texts_come_before_ours(own: Source, tmp_path: Path) -> None:
    assert all(passage.prompt for passage in passages(own))
    plain = Path(own.path)
    (plain / "eval.jsonl").rename(plain / "other")
    assert passages(own) == []
    (plain / "calibration.txt").write_text("only this")
    assert [passage.text for passage in passages(own)] == ["only this"]


def test_only_the_answers_are_compared(own: Source, tmp_path: Path) -> None:
    make(own, "llamacpp", passages(own), tmp_path, lambda fraction: None)
    reference = load(tmp_path / "reference.npz")
    assert len(reference.actual) == sum(len(s.ids) - s.first for s in reference.sequences)
    answers = [json.loads(line)["answer"] for line in (Path(own.path) / "eval.jsonl").read_text().splitlines()]
    assert len(reference.sequences) == len(answers)


def test_a_source_with_weights_that_are_no_numbers_is_refused_by_name(own: Source, tmp_path: Path) -> None:
    weights = Path(own.path) / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["model.norm.weight"][7] = float("nan")
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(CannotBuild, match=f"source '{own.id}' holds weights that are no numbers"):
        make(own, "transformers", passages(own), tmp_path, lambda fraction: None)


def test_an_artifact_that_computes_no_numbers_is_refused_by_toolchain_and_precision(
    own: Source, tmp_path: Path
) -> None:
    """Where the source computes some."""
    artifact = Path(build(own, "mlx", "f16", tmp_path / "cache", gate=False).path)
    tensors = safetensors.torch.load_file(artifact / "model.safetensors")
    tensors["model.norm.weight"][7] = float("inf")
    safetensors.torch.save_file(tensors, artifact / "model.safetensors", {"format": "mlx"})
    with pytest.raises(CannotBuild, match=r"mlx f16 of '.*' does not compute numbers; take another precision"):
        judge(own, toolchains()["mlx"], "f16", artifact, tmp_path / "cache", LIMITS.bf16, lambda fraction: None)


def test_a_killed_run_of_the_source_leaves_nothing_half_written(own: Source, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from enginehouse.config.schema import Optimize; "
        "from enginehouse.optimize.quality.gate import judge; "
        "from enginehouse.optimize.sources.resolve import resolve; "
        "from enginehouse.optimize.toolchains import toolchains; "
        f"judge(resolve({own.path!r}), toolchains()['gguf'], 'Q8_0', Path('none'), Path({str(tmp_path)!r}), "
        "Optimize().int8, print)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout and parent.stderr
        parent.stdout.readline()  # the first text is read
        child = next(
            c for c in psutil.Process(parent.pid).children() if "enginehouse.optimize.quality.gate" in c.cmdline()
        )
        child.send_signal(signal.SIGKILL)
        assert b"ended with status -9" in parent.stderr.read()
    assert list((tmp_path / "references").iterdir()) == []


def test_every_rung_of_a_ladder_is_a_precision_with_a_reason() -> None:
    for toolchain in toolchains().values():
        rungs = list(toolchain.ladder)
        assert set(rungs) <= set(toolchain.precisions.values())
        assert [bits(rung) for rung in rungs] == sorted(bits(rung) for rung in rungs)
        assert all(toolchain.ladder.values())
