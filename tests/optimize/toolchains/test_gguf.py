"""What the gguf toolchain writes is the checkpoint: same greedy tokens, same tokenization, smaller when quantized."""

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.toolchains.gguf.toolchain import TOOLCHAIN
from enginehouse.optimize.toolchains.gguf.vocabulary import PRE_TOKENIZERS
from tests.checkpoints import CORPUS, LLAMA3, byte_level_tokenizer, make_checkpoint, sentencepiece_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
torch.set_num_threads(1)

PROMPT = "The quick brown fox"
LONG_PROMPT = PROMPT * 70  # more than the 256 tokens of LONGROPE's short factors
ROPE = {"rope_theta": 10000.0}
LLAMA3_ROPE = {
    **ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    **ROPE,
    "rope_type": "longrope",
    "long_factor": [1.0 + i / 2 for i in range(8)],
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "original_max_position_embeddings": 256,
}
LINEAR = {**ROPE, "rope_type": "linear", "factor": 4.0}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
EVERY_THIRD = ["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"]


def source_of(folder: Path, kind: str = "checkpoint") -> Source:
    size = sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else folder.stat().st_size
    return Source(str(folder), kind, str(folder), "", 256, 0, size, "fingerprint")


def build(folder: Path, precision: str = "F32", kind: str = "checkpoint", suffix: str = "") -> Path:
    output = folder.with_name(f"{folder.name}-{precision}{suffix}")
    output.mkdir()
    TOOLCHAIN.build(source_of(folder, kind), precision, output, lambda stage, fraction: None)
    assert [file.name for file in output.iterdir()] == [TOOLCHAIN.entry]
    return output / TOOLCHAIN.entry


def greedy_by_llama_cpp(file: Path, ids: list[int], context: int) -> tuple[list[int], Any]:
    model = llama_cpp.Llama(
        str(file), n_ctx=context, n_batch=context, n_threads=1, type_k=0, type_v=0, flash_attn=False, verbose=False
    )
    model.eval(ids)
    tokens: list[int] = []
    logits = []
    for _ in range(24):
        row = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
        logits.append(np.ctypeslib.as_array(row, (model.n_vocab(),)).copy())
        tokens.append(int(logits[-1].argmax()))
        model.eval(tokens[-1:])
    model.close()
    return tokens, logits[0]


def greedy_by_transformers(folder: Path, ids: list[int]) -> tuple[list[int], Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens: list[int] = []
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0, -1].numpy()]
        for _ in range(24):
            tokens.append(int(logits[-1].argmax()))
            logits.append(model(torch.tensor([ids + tokens])).logits[0, -1].numpy())
    return tokens, logits[0]


MODELS: dict[str, tuple[str, Callable[[], tokenizers.Tokenizer], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", sentencepiece_tokenizer, {"bos_token_id": 1}),
    "llama with untied head": ("LlamaForCausalLM", byte_level_tokenizer, {"tie_word_embeddings": False}),
    "llama with tied head": ("LlamaForCausalLM", byte_level_tokenizer, {"tie_word_embeddings": True}),
    "llama with llama3 rope": (
        "LlamaForCausalLM",
        lambda: byte_level_tokenizer(LLAMA3, nfc=False),
        {"rope_parameters": LLAMA3_ROPE},
    ),
    "llama with linear rope": ("LlamaForCausalLM", byte_level_tokenizer, {"rope_parameters": LINEAR}),
    "llama with yarn": ("LlamaForCausalLM", byte_level_tokenizer, {"rope_parameters": YARN}),
    "llama in shards": ("LlamaForCausalLM", byte_level_tokenizer, {"max_shard_size": "100KB"}),
    "mistral": ("MistralForCausalLM", lambda: sentencepiece_tokenizer("first"), {}),
    "qwen2": ("Qwen2ForCausalLM", byte_level_tokenizer, {}),
    "qwen2 with yarn": ("Qwen2ForCausalLM", byte_level_tokenizer, {"rope_parameters": YARN}),
    "qwen3": ("Qwen3ForCausalLM", byte_level_tokenizer, {}),
    "qwen3 with yarn": ("Qwen3ForCausalLM", byte_level_tokenizer, {"rope_parameters": YARN}),
    "qwen3 with linear rope": ("Qwen3ForCausalLM", byte_level_tokenizer, {"rope_parameters": LINEAR}),
    "phi3": ("Phi3ForCausalLM", sentencepiece_tokenizer, {}),
    "phi3 rotating half of each head": (
        "Phi3ForCausalLM",
        sentencepiece_tokenizer,
        {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "phi3 with longrope": (
        "Phi3ForCausalLM",
        sentencepiece_tokenizer,
        {"rope_parameters": LONGROPE, "max_position_embeddings": 1024, "original_max_position_embeddings": 256},
    ),
    "gemma3": ("Gemma3ForCausalLM", lambda: sentencepiece_tokenizer("never"), {}),
    "gemma3 with linear rope": ("Gemma3ForCausalLM", byte_level_tokenizer, {"rope_parameters": GEMMA_ROPE}),
    "gemma3 with every third layer full": ("Gemma3ForCausalLM", byte_level_tokenizer, {"layer_types": EVERY_THIRD}),
}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    architecture, tokenizer, config = MODELS[name]
    folder = make_checkpoint(tmp_path / "model", architecture, tokenizer=tokenizer(), **config)
    file = build(folder)
    prompts = [(PROMPT, 256), (LONG_PROMPT, 1024)] if "longrope" in name else [(PROMPT, 256)]
    for prompt, context in prompts:
        ids = tokenizer().encode(prompt).ids
        expected, expected_logits = greedy_by_transformers(folder, ids)
        got, logits = greedy_by_llama_cpp(file, ids, context)
        assert got == expected
        # gemma's GELU is a table of half floats in llama.cpp
        assert np.abs(logits - expected_logits).max() < (0.02 if "gemma" in name else 1e-4)


@pytest.mark.parametrize("rope", [LLAMA3_ROPE, LINEAR, YARN])
def test_a_config_of_transformers_4_gives_the_same_file(rope: dict[str, Any], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "LlamaForCausalLM", rope_parameters=rope)
    new = build(folder)
    config = json.loads((folder / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (folder / "config.json").write_text(json.dumps(config))
    assert build(folder, suffix="-old").read_bytes() == new.read_bytes()


def test_vision_tensors_are_left_out_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "text", "Gemma3ForCausalLM")
    text = build(folder)
    both = tmp_path / "both"
    both.mkdir()
    for file in folder.iterdir():
        (both / file.name).write_bytes(file.read_bytes())
    from safetensors.numpy import load_file, save_file

    tensors = {f"language_model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["vision_tower.vision_model.post_layernorm.weight"] = np.zeros(4, np.float32)
    tensors["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(4, np.float32)
    save_file(tensors, both / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "vision_config": {}}
    (both / "config.json").write_text(json.dumps(nested))
    ids = byte_level_tokenizer().encode(PROMPT).ids
    assert greedy_by_llama_cpp(build(both), ids, 64)[0] == greedy_by_llama_cpp(text, ids, 64)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["F32", "F16", "BF16"])
def test_unquantized_weights_are_the_checkpoints_to_the_bit(dtype: torch.dtype, precision: str, tmp_path: Path) -> None:
    import gguf

    folder = make_checkpoint(tmp_path / "model", dtype=dtype)
    stored = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(build(folder, precision)).tensors}
    got = tensors["blk.1.ffn_down.weight"]
    expected = stored["model.layers.1.mlp.down_proj.weight"].to(kinds[precision])
    assert got.tensor_type.name == precision
    assert got.data.tobytes() == expected.contiguous().view(torch.uint8).numpy().tobytes()
    assert tensors["blk.1.attn_norm.weight"].tensor_type.name == "F32"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, the block of the K quantizations."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return make_checkpoint(folder, dtype=torch.bfloat16, hidden_size=256, intermediate_size=512, head_dim=64)


@pytest.mark.parametrize("precision", sorted(set(TOOLCHAIN.precisions.values()) - {"F32", "F16", "BF16"}))
def test_a_quantized_file_loads_and_is_smaller_than_16_bits(precision: str, wide: Path) -> None:
    from enginehouse.optimize.sources.gguf_header import read_header

    file = build(wide, precision)
    assert file.stat().st_size < 0.75 * (wide / "model.safetensors").stat().st_size
    assert read_header(file).precision == precision
    tokens, logits = greedy_by_llama_cpp(file, byte_level_tokenizer().encode(PROMPT).ids, 64)
    assert len(tokens) == 24
    assert np.isfinite(logits).all()


def test_an_8_bit_file_gives_nearly_the_checkpoints_logits(wide: Path) -> None:
    ids = byte_level_tokenizer().encode(CORPUS[0]).ids
    _, expected = greedy_by_transformers(wide, ids)
    _, got = greedy_by_llama_cpp(build(wide, "Q8_0", suffix="-logits"), ids, 128)
    assert np.corrcoef(got, expected)[0, 1] > 0.995


def test_a_16_bit_gguf_file_is_quantized_like_its_checkpoint(wide: Path) -> None:
    plain = build(wide, "BF16").rename(wide.with_name("plain.gguf"))
    again = build(plain, "Q4_K_M", "gguf")
    assert again.read_bytes() == build(wide, "Q4_K_M", suffix="-again").read_bytes()
    ids = byte_level_tokenizer().encode(PROMPT).ids
    widened = build(plain, "F32", "gguf")
    assert greedy_by_llama_cpp(widened, ids, 64)[0] == greedy_by_transformers(wide, ids)[0]


def test_progress_rises_through_every_stage(wide: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    TOOLCHAIN.build(source_of(wide), "Q4_0", tmp_path, lambda stage, fraction: told.append((stage, fraction)))
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["convert", "quantize", "check"]
    for stage in ("convert", "quantize", "check"):
        fractions = [fraction for name, fraction in told if name == stage]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


@pytest.mark.parametrize("stage", ["convert", "quantize", "check"])
def test_an_interrupted_build_leaves_nothing(stage: str, wide: Path, tmp_path: Path) -> None:
    def interrupt(at: str, fraction: float) -> None:
        if at == stage:
            raise KeyboardInterrupt

    (tmp_path / "callers").write_text("own")
    with pytest.raises(KeyboardInterrupt):
        TOOLCHAIN.build(source_of(wide), "Q4_K_M", tmp_path, interrupt)
    assert [file.name for file in tmp_path.iterdir()] == ["callers"]


@pytest.mark.parametrize(("precision", "intermediate"), [("BF16", False), ("Q8_0", True), ("Q2_K", True)])
def test_the_estimate_covers_what_a_build_needs(precision: str, intermediate: bool, wide: Path) -> None:
    source = source_of(wide)
    written = build(wide, precision, suffix="-estimate").stat().st_size
    assert TOOLCHAIN.needs_bytes(source, precision) > written + intermediate * source.bytes


def test_stop_ids_and_template_travel_in_the_file(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "phi3-like", tokenizer=byte_level_tokenizer())
    model = llama_cpp.Llama(str(build(folder)), vocab_only=True, verbose=False)
    assert json.loads(model.metadata["enginehouse.eos_token_ids"]) == [1, 2]
    assert model.metadata["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    assert model.metadata["tokenizer.ggml.add_bos_token"] == "false"
    assert model.token_eos() == 2


def test_a_list_of_templates_gives_the_default_one(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    settings_file = folder / "tokenizer_config.json"
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"chat_template": templates}))
    model = llama_cpp.Llama(str(build(folder)), vocab_only=True, verbose=False)
    assert model.metadata["tokenizer.chat_template"] == "plain"


TOKENIZERS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "qwen": byte_level_tokenizer,
    "llama3": lambda: byte_level_tokenizer(LLAMA3, nfc=False),
    "gpt2": lambda: byte_level_tokenizer(None, nfc=False),
    "smollm": lambda: byte_level_tokenizer(None, nfc=False, digits=True),
    "legacy": sentencepiece_tokenizer,
    "first": lambda: sentencepiece_tokenizer("first"),
    "never": lambda: sentencepiece_tokenizer("never"),
}
Cut = Callable[[str], list[int]]


@pytest.fixture(scope="module", params=TOKENIZERS)
def cuts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cut, Cut]:
    """A text's ids by llama.cpp from the file, and by tokenizers."""
    from enginehouse.optimize.toolchains.gguf.text import KEY, TextRules, prepare_text

    tokenizer = TOKENIZERS[request.param]()
    architecture = "LlamaForCausalLM"
    folder = make_checkpoint(tmp_path_factory.mktemp("cuts") / "model", architecture, tokenizer=tokenizer)
    model = llama_cpp.Llama(str(build(folder)), vocab_only=True, verbose=False)
    rules = msgspec.json.decode(model.metadata[KEY], type=TextRules)

    def cut(text: str) -> list[int]:
        data = prepare_text(text, rules).encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        vocabulary = llama_cpp.llama_model_get_vocab(model.model)
        return list(ids[: llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, True)])

    return cut, lambda text: tokenizer.encode(text, add_special_tokens=False).ids


PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text("ab'stLl 1 23\n\r\t  .!?_", max_size=20),
    st.sampled_from(["<|im_end|>", "<|im_start|>", "<think>", "</s>", "e\u0301", "日本語", "👩\u200d👧", "'LL", "  "]),
)


@given(st.lists(PIECES, max_size=6).map("".join))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_is_cut_as_the_checkpoints_tokenizer_cuts_it(cuts: tuple[Cut, Cut], text: str) -> None:
    by_llama_cpp, by_tokenizers = cuts
    assert by_llama_cpp(text) == by_tokenizers(text)


@pytest.mark.parametrize(
    "regex", [regex for (regex, *_), name in PRE_TOKENIZERS.items() if name in ("tekken", "gpt-4o")]
)
def test_the_other_pre_tokenizers_pass_the_self_check(regex: str, tmp_path: Path) -> None:
    """Not exact on all of Unicode in llama.cpp (case outside ASCII), so only the self-check is claimed."""
    tokenizer = byte_level_tokenizer(regex, nfc=False)
    build(make_checkpoint(tmp_path / "model", "MistralForCausalLM", tokenizer=tokenizer))


def test_added_tokens_that_swallow_blanks_do_so_here_too(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken("<|user|>", rstrip=True), tokenizers.AddedToken("<|mask|>", lstrip=True)]
    )
    folder = make_checkpoint(tmp_path / "model", "Phi3ForCausalLM", tokenizer=tokenizer)
    build(folder)  # its self-check has blanks around every added token


def test_a_tokenizer_llama_cpp_cuts_differently_from_is_found_out(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(None, nfc=False)
    folder = make_checkpoint(tmp_path / "model", tokenizer=tokenizer)
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    build(folder)
    raw["model"]["ignore_merges"] = True
    raw["model"]["merges"] = raw["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "out").mkdir()
    with pytest.raises(CannotBuild, match=r'llama\.cpp cuts the text "Hello world.* token 5 on is \[223, 89'):
        TOOLCHAIN.build(source_of(folder), "F32", tmp_path / "out", lambda stage, fraction: None)
    assert not list((tmp_path / "out").iterdir())
