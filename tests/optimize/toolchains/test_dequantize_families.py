"""A .gguf file of each family that is read gives back the checkpoint that it was made of, and computes the same."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch

from enginehouse.optimize import ladder
from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.quality.reference_runner import Transformers
from enginehouse.optimize.quality.references import log_softmax
from enginehouse.optimize.sources import gguf_header
from enginehouse.optimize.sources.gguf_architectures import ARCHITECTURES
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains import toolchains
from tests.bench.families import FAMILIES, VOCABULARY, ids, tokenizer
from tests.bench.family_results import LARGE
from tests.checkpoints import make_checkpoint, sentencepiece_tokenizer
from tests.optimize.toolchains.test_dequantize import build_as_exact_as_the_file, made, rewrite
from tests.optimize.toolchains.test_gguf import GEMMA_ROPE
from tests.optimize.toolchains.test_gguf import build as convert

pytest.importorskip("llama_cpp")

QWEN2_MOE = {
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "num_experts": 4,
    "shared_expert_intermediate_size": 48,
}
READ = {
    **FAMILIES,
    "Gemma": ("GemmaForCausalLM", {"head_dim": 32}),
    "Gemma 3, scaled": ("Gemma3ForCausalLM", {"rope_parameters": GEMMA_ROPE}),
    "Phi-3, partly turned": (
        "Phi3ForCausalLM",
        {
            "original_max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    "Qwen2-MoE": ("Qwen2MoeForCausalLM", QWEN2_MOE),
    "StableLM with biases": ("StableLmForCausalLM", {"use_qkv_bias": True}),
    "GLM-4 with biases": ("Glm4ForCausalLM", {"head_dim": 16, "attention_bias": True}),
}
ALWAYS = ["Gemma 3", "Gemma 3, scaled", "Phi-3", "Phi-3, partly turned", "Qwen3-MoE", "Qwen2-MoE"]
REST = [
    "Mixtral", "Gemma", "Gemma 2", "Granite 3", "OLMo 2", "SmolLM3", "StableLM", "StableLM with biases", "Cohere",
    "Command R7B", "Ministral 3", "GLM-4", "GLM-4 with biases", "ERNIE 4.5", "EXAONE 4",
]  # fmt: skip
PROMPT = "The quick brown fox jumps over  two lazy dogs<|im_end|>\n日本語"


def small(folder: Path, family: str, **settings: Any) -> Path:
    architecture, own = READ[family]
    settings = {"tokenizer": tokenizer(), "vocab_size": VOCABULARY, "dtype": torch.bfloat16, **own, **settings}
    return make_checkpoint(folder / "tiny", architecture, **settings)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(small(tmp_path_factory.mktemp("mixture"), "Qwen3-MoE"), "F32")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    own = sentencepiece_tokenizer("never")
    return convert(small(folder, "Gemma 3", tokenizer=own, vocab_size=own.get_vocab_size()), "Q8_0")


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(small(tmp_path_factory.mktemp("phi"), "Phi-3"), "Q8_0")


@pytest.mark.parametrize("family", ALWAYS + (REST if os.environ.get("ENGINEHOUSE_ALL_FAMILIES") else []))
def test_what_is_read_is_the_checkpoint_and_computes_what_llama_cpp_does(family: str, tmp_path: Path) -> None:
    folder = small(tmp_path, family)
    file = convert(folder, "F32")
    back = Path(made(file, tmp_path / "cache").path)
    before, after = (safetensors.torch.load_file(at / "model.safetensors") for at in (folder, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    own, theirs = (tokenizers.Tokenizer.from_file(str(at / "tokenizer.json")) for at in (folder, back))
    assert theirs.encode(PROMPT).ids == own.encode(PROMPT).ids
    expected, got = (next(Transformers(at).logits([ids()])) for at in (folder, back))
    assert np.array_equal(expected, got), "its config says the same"
    by_llama_cpp = next(toolchains()["gguf"].logits(file, [ids()]))[:, :VOCABULARY]
    differences = np.abs(log_softmax(by_llama_cpp) - log_softmax(got)).max(1)
    assert np.median(differences) < 0.01
    assert (differences > LARGE).sum() <= 2


def test_the_docs_name_what_is_read() -> None:
    docs = Path("docs/configuration.md").read_text(encoding="utf-8")
    assert [architecture.name for architecture in ARCHITECTURES if f"`{architecture.name}`" not in docs] == []


@pytest.mark.parametrize("scheme", ["legacy", "first", "never"])
def test_sentencepiece_is_cut_as_llama_cpp_cuts_it(scheme: str, tmp_path: Path) -> None:
    own = sentencepiece_tokenizer(scheme)
    file = convert(small(tmp_path, "Phi-3", tokenizer=own, vocab_size=own.get_vocab_size()), "BF16")
    theirs = tokenizers.Tokenizer.from_file(str(Path(made(file, tmp_path / "cache").path, "tokenizer.json")))
    for text in (PROMPT, " x", "  two", "a</s> b", "\n"):
        assert theirs.encode(text).ids == own.encode(text).ids
        back = own.decode(own.encode(text).ids)
        assert theirs.decode(theirs.encode(text).ids) == (back if scheme == "never" else back.removeprefix(" "))


def test_what_llama_cpp_finds_whole_is_found_whole(tmp_path: Path) -> None:
    """Qwen's vocabulary has a plain token '</s>', which llama.cpp takes for the end of a text."""
    document = json.loads(tokenizer().to_str())
    del document["added_tokens"][-1]
    end = document["model"]["vocab"]["</t>"] = len(document["model"]["vocab"])
    for token in document["added_tokens"]:
        token["id"] += token["id"] >= end
    plain = tokenizers.Tokenizer.from_str(json.dumps(document))
    file = convert(small(tmp_path, "Phi-3", tokenizer=plain), "BF16")
    tokens = gguf_header.read_tokenizer(file)["tokenizer.ggml.tokens"]
    tokens[tokens.index("</t>")] = "</s>"
    changed = rewrite(file, tmp_path / "changed.gguf", tokenizer__ggml__tokens=tokens)
    theirs = tokenizers.Tokenizer.from_file(str(Path(made(changed, tmp_path / "cache").path, "tokenizer.json")))
    assert end not in plain.encode("a</t>b").ids
    assert end in theirs.encode("a</s>b").ids


def test_what_a_header_of_theirs_tells_is_refused_before_anything_is_read(
    gemma: Path, phi: Path, mixture: Path, tmp_path: Path
) -> None:
    refuses = toolchains()["openvino"].refuses
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (gemma, {"gemma3__attention__sliding_window": None}, "does not say 'gemma3.attention.sliding_window'"),
        (gemma, {"gemma3__attention__sliding_window_pattern": 4}, "pattern' 4, where 6 fits what else it says"),
        (gemma, {"gemma3__rope__scaling__type": "yarn"}, "of 'yarn' positions is not carried over"),
        (gemma, {"gemma3__rope__dimension_count": 16}, "says 'gemma3.rope.dimension_count' 16, where 32 fits"),
        (gemma, {"gemma3__final_logit_softcapping": 30.0}, "'gemma3.final_logit_softcapping', which is not carried"),
        (phi, {"phi3__rope__scaling__attn_factor": 1.2}, "of 'longrope' positions is not carried over"),
        (phi, {"phi3__rope__dimension_count": 99}, "says 'phi3.rope.dimension_count' 99, where 16 fits"),
        (phi, {"phi3__rope__freq_base_swa": 5.0}, "says 'phi3.rope.freq_base_swa', which is not carried over"),
        (mixture, {"qwen3moe__expert_used_count": None}, "does not say 'qwen3moe.expert_used_count'"),
        (mixture, {"qwen3moe__expert_gating_func": 2}, "says 'qwen3moe.expert_gating_func', which is not carried over"),
        (mixture, {"qwen3moe__expert_count": 0}, "gives '0' as the model's num_experts; it is damaged"),
    ]
    for file in (gemma, phi, mixture):
        assert refuses(resolve(str(file))) is None
    for number, (file, changes, sentence) in enumerate(cases):
        changed = rewrite(file, tmp_path / f"{number}.gguf", **changes)
        assert sentence in str(refuses(resolve(str(changed))))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"qwen3moe__expert_count": 3}, r"has shape \[4, 64\], its header says \[3, 64\]"),
        ({"qwen3moe__expert_feed_forward_length": 31}, r"has shape \[4, 32, 64\], its header says \[4, 31, 64\]"),
        ({"architecture": "qwen3"}, "does not say 'qwen3.context_length'"),
    ],
)
def test_experts_that_are_not_as_promised_are_refused(
    mixture: Path, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    changed = rewrite(mixture, tmp_path / "changed.gguf", **changes)
    with pytest.raises(CannotBuild, match=sentence):
        made(changed, tmp_path / "cache")
    assert list((tmp_path / "cache").glob("dequantized/*")) == []


def test_a_trial_of_one_shape_says_nothing_of_another(gemma: Path, tmp_path: Path) -> None:
    toolchain = toolchains()["openvino"]
    longer = rewrite(gemma, tmp_path / "longer.gguf", gemma3__context_length=512)
    scaled = rewrite(
        gemma, tmp_path / "scaled.gguf", gemma3__rope__scaling__type="linear", gemma3__rope__scaling__factor=8.0
    )
    one, same, other = (ladder.family(toolchain, resolve(str(file))) for file in (gemma, longer, scaled))
    assert one == same != other


@pytest.mark.parametrize(
    ("model", "file_format", "precision"), [("gemma", "mlx", "f32"), ("phi", "onnx", "F32"), ("mixture", "mlx", "f32")]
)
def test_engines_compute_what_the_file_does(
    model: str, file_format: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    toolchain, source = toolchains()[file_format], resolve(str(request.getfixturevalue(model)))
    if reason := toolchain.unavailable():
        pytest.skip(reason)
    build_as_exact_as_the_file(source, toolchain, precision, tmp_path)
