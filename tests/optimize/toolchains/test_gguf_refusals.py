"""What the gguf converter does not know it refuses in one sentence, before it writes anything."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, models, normalizers, pre_tokenizers

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.toolchains.gguf.toolchain import TOOLCHAIN
from tests.checkpoints import byte_level_tokenizer, make_checkpoint, save_tokenizer, sentencepiece_tokenizer

pytest.importorskip("llama_cpp")

WEIGHTS = "model.safetensors"
Change = Callable[[Path], None]


def configured(**values: Any) -> Change:
    return lambda folder: edit(folder / "config.json", lambda raw: raw.update(values))


def without(key: str) -> Change:
    return lambda folder: edit(folder / "config.json", lambda raw: raw.pop(key))


def tokenized(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda folder: edit(folder / "tokenizer.json", change)


def weighted(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return apply


def cut(keep: Callable[[int], int]) -> Change:
    def apply(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: keep(len(data))])

    return apply


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def garbled(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def garbled_bytes(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"a": "\xff"}')


def without_end(folder: Path) -> None:
    edit(folder / "config.json", lambda raw: raw.pop("eos_token_id"))
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def rewritten(header: bytes) -> Change:
    def apply(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)

    return apply


ROPE: dict[str, Any] = {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
GATE = "model.layers.0.mlp.gate_proj.weight"
LETTERS = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

REFUSALS: dict[str, tuple[Change, str]] = {
    "no architecture": (without("architectures"), "config.json names no 'architectures'"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no 'config.json'"),
    "broken config": (garbled, "'config.json' is damaged"),
    "config no UTF-8": (garbled_bytes, "'config.json' is damaged"),
    "missing setting": (without("hidden_size"), "missing required field `hidden_size`"),
    "absurd setting": (configured(num_attention_heads=0), "Expected `int` >= 1 - at `$.num_attention_heads`"),
    "heads": (configured(num_key_value_heads=3), "4 heads do not divide over 3 key heads"),
    "quantized": (configured(quantization_config={"quant_method": "gptq"}), "quantized already ('gptq')"),
    "activation": (configured(hidden_act="relu"), "activation 'relu' is not known for a qwen3 model; known: silu"),
    "softcapping": (configured(attn_logit_softcapping=50.0), "logit softcapping is not known"),
    "rope": (configured(rope_parameters={**ROPE, "rope_type": "dynamic"}), "rope variant 'dynamic' of a qwen3 model"),
    "older rope": (
        configured(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rope variant 'dynamic' of a qwen3 model",
    ),
    "llama3 rope outside llama": (configured(rope_parameters={**ROPE, "rope_type": "llama3"}), "rope variant 'llama3'"),
    "partial rope": (
        configured(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        "'partial_rotary_factor' 0.5 is not known for a qwen3 model",
    ),
    "yarn's own attention factor": (
        configured(rope_parameters={**ROPE, "rope_type": "yarn", "attention_factor": 1.5}),
        "yarn's 'attention_factor' 1.5 is not known",
    ),
    "rope without factor": (
        configured(rope_parameters={"rope_type": "linear", "rope_theta": 1e4}),
        "rope parameters in config.json lack 'factor'",
    ),
    "small vocabulary": (
        tokenized(lambda raw: raw["added_tokens"][3].update(id=9000)),
        "the tokenizer has token ids up to 9000, the model's 'vocab_size' is 471",
    ),
    "foreign tensor": (
        weighted(lambda tensors: tensors.update({"model.layers.0.moe.weight": np.zeros(4, np.float32)})),
        "tensor 'model.layers.0.moe.weight' is not part of a qwen3 model",
    ),
    "attention bias": (
        weighted(lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": np.zeros(128, np.float32)})),
        "tensor 'model.layers.1.self_attn.q_proj.bias' is not part of a qwen3 model",
    ),
    "missing tensor": (weighted(lambda tensors: tensors.pop(GATE)), f"tensor '{GATE}' is missing"),
    "missing head": (configured(tie_word_embeddings=False), "tensor 'lm_head.weight' is missing"),
    "shape": (configured(intermediate_size=128), "has shape [96, 64], config.json says [128, 64]"),
    "integers": (
        weighted(lambda tensors: tensors.update({GATE: tensors[GATE].astype(np.int8)})),
        f"tensor '{GATE}' is stored as 'I8'; known: F32, F16, BF16",
    ),
    "pickle only": (pickled, "only safetensors are read; save it again with transformers"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "has no 'model.safetensors'"),
    "missing shard": (sharded, "shard 'model-00001-of-00002.safetensors' named in 'model.safetensors.index.json' is"),
    "empty file": (cut(lambda size: 0), "its header goes beyond its 0 bytes"),
    "header beyond file": (cut(lambda size: 100), "its header goes beyond its 100 bytes; download it again"),
    "data beyond file": (cut(lambda size: size - 1), "'model.safetensors' is damaged or truncated: tensor"),
    "header no JSON": (rewritten(b"{nonsense"), "its header does not decode"),
    "wrong bytes for a shape": (
        rewritten(b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,0]}}'),
        "tensor 'a' has not the bytes of its shape [3]",
    ),
    "offsets backwards": (
        rewritten(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}'),
        "tensor 'a' lies beyond its",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "there is no 'tokenizer.json'; make it"),
    "tokenizer kind": (
        tokenized(lambda raw: raw.update(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0})),
        "tokenizer kind 'Unigram' is not known to the gguf converter; known: BPE",
    ),
    "pre-tokenizer regex": (
        tokenized(lambda raw: raw.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [LETTERS, BYTES]})),
        r"pre-tokenizer regex '\w+' has no equal in llama.cpp",
    ),
    "pre-tokenizer": (
        tokenized(lambda raw: raw.update(pre_tokenizer={"type": "Whitespace"})),
        """pre-tokenizer '{"type":"Whitespace"}' has no equal in llama.cpp""",
    ),
    "normalizer": (
        tokenized(lambda raw: raw.update(normalizer={"type": "Lowercase"})),
        "tokenizer normalizer 'Lowercase' is not known",
    ),
    "word ends": (
        tokenized(lambda raw: raw["model"].update(end_of_word_suffix="</w>")),
        "tokenizer option 'end_of_word_suffix' is not known",
    ),
    "whole words": (
        tokenized(lambda raw: raw["added_tokens"][1].update(single_word=True)),
        "added token '<|im_start|>' matches whole words only",
    ),
    "post-processor": (
        tokenized(lambda raw: raw.update(post_processor={"type": "BertProcessing"})),
        "tokenizer post-processor 'BertProcessing' is not known",
    ),
    "no end token": (without_end, "the model has no end token; give 'eos_token_id' in config.json"),
}


def source_of(folder: Path, kind: str = "checkpoint") -> Source:
    return Source(str(folder), kind, str(folder), "", 0, 0, 0, "fingerprint")


def failure(source: Source, precision: str, output: Path) -> str:
    output.mkdir()
    (output / "callers").write_text("own")
    with pytest.raises(CannotBuild) as raised:
        TOOLCHAIN.build(source, precision, output, lambda stage, fraction: None)
    assert [file.name for file in output.iterdir()] == ["callers"]
    return str(raised.value)


def test_a_good_checkpoint_is_not_refused(tmp_path: Path) -> None:
    assert TOOLCHAIN.refuses(source_of(make_checkpoint(tmp_path / "model"))) is None


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_not_known_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    change, sentence = REFUSALS[name]
    folder = make_checkpoint(tmp_path / "model")
    change(folder)
    refusal = TOOLCHAIN.refuses(source_of(folder))
    assert refusal is not None
    assert sentence in refusal
    assert "\n" not in refusal
    assert failure(source_of(folder), "BF16", tmp_path / "out") == refusal


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "model", dtype=dtype)
    tensors = load_file(folder / WEIGHTS)
    tensors[GATE][3, 5] = value
    save_file(tensors, folder / WEIGHTS)
    sentence = failure(source_of(folder), "Q8_0", tmp_path / "out")
    assert sentence == f"tensor '{GATE}' has NaN or infinite weights; the checkpoint is broken, download it again"


def test_weights_too_large_for_half_floats_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    weighted(lambda tensors: tensors[GATE].__setitem__((0, 0), 70000.0))(folder)
    sentence = failure(source_of(folder), "F16", tmp_path / "out")
    assert sentence == f"tensor '{GATE}' has values beyond F16; use precision 'BF16' or 'F32'"


def test_gemma_with_another_attention_scale_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "Gemma3ForCausalLM", query_pre_attn_scalar=17)
    assert TOOLCHAIN.refuses(source_of(folder)) == "'query_pre_attn_scalar' 17 is not known; known: 32"


def test_qwen2_with_free_head_size_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "Qwen2ForCausalLM", head_dim=32)
    assert "'head_dim' 32 is not hidden size / heads" in str(TOOLCHAIN.refuses(source_of(folder)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: setattr(t, "normalizer", normalizers.NFKC()), "tokenizer normalizer 'NFKC' is not known"),
        (lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Digits()), "pre-tokenizer 'Digits' has no equal"),
        (
            lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(Regex(r"\d"), "isolated")),
            "pre-tokenizer 'Split' has no equal",
        ),
    ],
)
def test_a_foreign_step_before_byte_fallback_is_refused(
    change: Callable[[tokenizers.Tokenizer], None], sentence: str, tmp_path: Path
) -> None:
    tokenizer = sentencepiece_tokenizer()
    folder = make_checkpoint(tmp_path / "model", "LlamaForCausalLM", tokenizer=tokenizer)
    change(tokenizer)
    save_tokenizer(folder, tokenizer)
    assert sentence in str(TOOLCHAIN.refuses(source_of(folder)))


def test_a_token_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    folder = make_checkpoint(tmp_path / "model", tokenizer=tokenizer)
    tokenized(lambda raw: raw["added_tokens"][3].update(content="a"))(folder)
    assert TOOLCHAIN.refuses(source_of(folder)) == "the tokenizer has the token 'a' twice, which llama.cpp cannot hold"


def test_a_quantized_gguf_file_is_not_quantized_again(tmp_path: Path) -> None:
    output = tmp_path / "first"
    output.mkdir()
    TOOLCHAIN.build(source_of(make_checkpoint(tmp_path / "model")), "Q8_0", output, lambda stage, fraction: None)
    source = source_of(output / TOOLCHAIN.entry, "gguf")
    sentence = "'model.gguf' is quantized already ('Q8_0'); serve it as it is, or give the 16-bit model"
    assert TOOLCHAIN.refuses(source) == sentence
    assert failure(source, "Q4_0", tmp_path / "out") == sentence


def test_what_llama_cpp_says_is_in_the_sentence(tmp_path: Path) -> None:
    import gguf

    file = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(file, "enginehouse-unheard-of")
    writer.add_tensor("weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sentence = failure(source_of(file, "gguf"), "Q8_0", tmp_path / "out")
    assert sentence.startswith("llama.cpp could not quantize to 'Q8_0': ")
    assert "enginehouse-unheard-of" in sentence


def test_a_source_of_another_kind_is_refused() -> None:
    sentence = "a gguf file is not built from 'echo'; give a Hugging Face folder or a .gguf file"
    assert TOOLCHAIN.refuses(Source("echo", "echo", "", "", 0, 0, 0, "")) == sentence


def test_a_word_level_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    assert "tokenizer kind 'WordLevel' is not known" in str(TOOLCHAIN.refuses(source_of(folder)))
