"""A .gguf file is a source for every toolchain: the checkpoint made of it is the one it was made of."""

import asyncio
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch

from enginehouse.optimize.artifact import CannotBuild, Source, Toolchain
from enginehouse.optimize.prepare import prepare
from enginehouse.optimize.sources import gguf_header
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.sources.token_count import NASTY
from enginehouse.optimize.store import Store
from enginehouse.optimize.toolchains import toolchains
from tests.checkpoints import byte_level_tokenizer, make_checkpoint, sentencepiece_tokenizer
from tests.optimize.toolchains.test_gguf import LINEAR, LLAMA3_ROPE, YARN
from tests.optimize.toolchains.test_gguf import build as convert

pytest.importorskip("llama_cpp")
dequantize = pytest.importorskip("enginehouse.optimize.toolchains.gguf.dequantize")

ROPE = {**LLAMA3_ROPE, "original_max_position_embeddings": 8192}


def quiet(stage: str, fraction: float) -> None: ...


def build_as_exact_as_the_file(source: Source, toolchain: Toolchain, precision: str, cache: Path) -> None:
    artifact = asyncio.run(prepare(source, toolchain, precision, cache, quiet))
    assert artifact.quality
    assert artifact.quality.reference == "llamacpp"
    assert artifact.quality.divergence < 0.001
    assert artifact.quality.agreement > 0.9


def tiny(folder: Path, architecture: str = "LlamaForCausalLM", **settings: Any) -> Path:
    return make_checkpoint(folder / "tiny", architecture, dtype=torch.bfloat16, **settings)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny(tmp_path_factory.mktemp("tiny")), "Q8_0")


def rewrite(file: Path, output: Path, parts: int = 0, **changes: Any) -> Path:
    """The same with other keys (None: without it), in as many files as are said."""
    reader, keys = gguf.GGUFReader(file), gguf_header.read(file)[0]
    architecture = changes.pop("architecture", keys["general.architecture"])
    each = -(-len(reader.tensors) // parts) if parts else 0
    writer = gguf.GGUFWriter(output, architecture, split_max_tensors=each)
    for key, value in changes.items():
        if value is not None:
            write = {
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
                bool: writer.add_bool,
                list: writer.add_array,
            }
            write[type(value)](key.replace("__", "."), value)
    for key, field in reader.fields.items():
        if key.replace(".", "__") not in changes and not key.startswith(("GGUF.", "general.architecture")):
            kind, items = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), kind, items)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def made(file: Path, cache: Path) -> Source:
    with dequantize.checkpoint_of(resolve(str(file)), cache, quiet) as checkpoint:
        assert isinstance(checkpoint, Source)
        return checkpoint


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("LlamaForCausalLM", {"tie_word_embeddings": True}),
        ("LlamaForCausalLM", {"rope_parameters": ROPE}),
        ("LlamaForCausalLM", {"rope_parameters": LINEAR}),
        ("LlamaForCausalLM", {"tokenizer": "sentencepiece"}),
        ("Qwen2ForCausalLM", {"rope_parameters": YARN}),
        ("Qwen3ForCausalLM", {}),
    ],
)
def test_a_checkpoint_comes_back_as_it_was(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    if "tokenizer" in settings:
        settings = {"tokenizer": sentencepiece_tokenizer("first")}
    folder = tiny(tmp_path, architecture, **settings)
    back = Path(made(convert(folder, "BF16"), tmp_path / "cache").path)
    before, after = (safetensors.torch.load_file(at / "model.safetensors") for at in (folder, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config, again = (json.loads((at / "config.json").read_text()) for at in (folder, back))
    rope = again["rope_parameters"]
    assert rope == pytest.approx({name: config["rope_parameters"][name] for name in rope})
    assert again["rms_norm_eps"] == pytest.approx(config["rms_norm_eps"])
    assert again["eos_token_id"] == config["eos_token_id"]
    own, theirs = (tokenizers.Tokenizer.from_file(str(at / "tokenizer.json")) for at in (folder, back))
    texts = ["The quick brown fox", "日本語のテキスト 👩 12345<|im_end|>x\n\n  y", *NASTY.split("\x00")[:1]]
    for text in texts:
        assert theirs.encode(text).ids == own.encode(text).ids
    assert theirs.decode(own.encode(texts[1]).ids, skip_special_tokens=False).endswith("<|im_end|>x\n\n  y")
    ends = json.loads((back / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) >= {1, 2}, "all that ended an answer, not the one that GGUF has room for"


def test_the_parts_of_a_split_file_are_one_model(file: Path, tmp_path: Path) -> None:
    whole = made(file, tmp_path / "cache")
    rewrite(file, tmp_path / "m.gguf", parts=3)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3
    split = made(tmp_path, tmp_path / "cache")
    assert split.path != whole.path
    one, other = (Path(source.path, "model.safetensors").read_bytes() for source in (whole, split))
    assert one == other
    parts[1].unlink()
    with pytest.raises(CannotBuild, match=f"lacks '{parts[1].name}', one of its 3 parts"):
        made(parts[0], tmp_path / "cache")


@pytest.mark.parametrize("file_format", ["openvino", "onnx", "mlx"])
def test_what_the_header_tells_is_refused_before_anything_is_read(file: Path, file_format: str, tmp_path: Path) -> None:
    refuses = toolchains()[file_format].refuses
    assert refuses(resolve(str(file))) is None
    cases: list[tuple[dict[str, Any], str]] = [
        ({"architecture": "mamba"}, "'mamba' models are not read from gguf files here; these are: llama,"),
        ({"llama__attention__sliding_window": 64}, "'llama.attention.sliding_window', which is not carried over"),
        ({"llama__vocab_size": 7}, "says 'llama.vocab_size' 7, where "),
        ({"llama__rope__scaling__type": "longrope"}, "of 'longrope' positions is not carried over"),
        ({"llama__block_count": 0}, "gives '0' as the model's num_hidden_layers; it is damaged"),
        ({"llama__embedding_length": None}, "does not say 'llama.embedding_length'"),
        ({"tokenizer__ggml__model": "rwkv"}, "has a tokenizer of kind 'rwkv', not read from gguf files here"),
    ]
    for number, (changes, sentence) in enumerate(cases):
        changed = rewrite(file, tmp_path / f"{number}.gguf", **changes)
        assert sentence in str(refuses(resolve(str(changed))))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"llama__block_count": 3}, "has no 'blk.2.attn_norm.weight', which its header promises"),
        ({"llama__block_count": 1}, "has a tensor 'blk.1.attn_k.weight', which is not carried over"),
        ({"llama__feed_forward_length": 100}, "has shape .*, its header says"),
    ],
)
def test_what_the_header_hides_is_refused_and_leaves_nothing(
    file: Path, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    changed = rewrite(file, tmp_path / "changed.gguf", **changes)
    with pytest.raises(CannotBuild, match=sentence) as refusal:
        made(changed, tmp_path / "cache")
    assert not refusal.value.environment
    assert list((tmp_path / "cache" / "intermediate").iterdir()) == []


def test_tokens_that_swallow_blanks_in_llama_cpp_do_everywhere(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<|endoftext|>"])
    file = convert(tiny(tmp_path, tokenizer=tokenizer), "BF16")
    changed = rewrite(file, tmp_path / "changed.gguf", general__name="phi-3")  # by which llama.cpp knows them
    made_of_it = tokenizers.Tokenizer.from_file(str(Path(made(changed, tmp_path / "cache").path, "tokenizer.json")))
    assert made_of_it.encode("</s>  x").ids == made_of_it.encode("</s>x").ids
    assert made_of_it.encode("<unk>  x").ids != made_of_it.encode("<unk>x").ids


def test_a_tokenizer_that_cuts_otherwise_than_llama_cpp_is_refused(file: Path, tmp_path: Path) -> None:
    changed = rewrite(file, tmp_path / "changed.gguf", tokenizer__ggml__pre="deepseek-llm")
    with pytest.raises(CannotBuild, match=r"gives other tokens than llama.cpp's own on .*; only llama.cpp serves"):
        made(changed, tmp_path / "cache")
    assert list((tmp_path / "cache" / "intermediate").iterdir()) == []


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    file = convert(tiny(tmp_path), "F32")
    tensor = next(tensor for tensor in gguf_header.read(file)[1] if tensor.name == "blk.1.attn_q.weight")
    weights = np.memmap(file, np.float32, "r+", tensor.offset, tensor.shape)
    weights[3, 3] = np.inf
    weights.flush()
    with pytest.raises(CannotBuild, match=r"'blk\.1\.attn_q\.weight' in 'model\.gguf' has NaN or infinite weights"):
        made(file, tmp_path / "cache")


def test_engines_are_built_of_one_copy_and_compared_with_the_file(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = resolve(str(file))
    for name, precision in (("mlx", "bf16"), ("onnx", "F32")):
        toolchain = toolchains()[name]
        if reason := toolchain.unavailable():
            pytest.skip(reason)
        build_as_exact_as_the_file(source, toolchain, precision, cache)
    (copy,) = (entry for entry in Store(cache).entries() if entry.kind == "dequantized")
    assert (copy.in_use, copy.bytes > 0) == (False, True)
    (removed, *_) = Store(cache).prune(0)
    assert removed == copy, "it can be made again"
    assert list((cache / "intermediate").iterdir()) == []


def test_what_is_kept_and_broken_is_made_again(file: Path, tmp_path: Path) -> None:
    weights = Path(made(file, tmp_path).path, "model.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[:-100])
    assert Path(made(file, tmp_path).path, "model.safetensors").read_bytes() == before


def test_smollm2_answers_in_transformers(tmp_path: Path) -> None:
    import transformers

    with dequantize.checkpoint_of(resolve("builtin:smollm2"), tmp_path, quiet) as checkpoint:
        smollm2 = checkpoint.path
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
