"""What a .gguf file would be as a Hugging Face checkpoint, by its header alone: the config, and what forbids it."""

import importlib.util
import math
from pathlib import Path
from typing import Any

from enginehouse.optimize import intermediate
from enginehouse.optimize.artifact import DEQUANTIZED_VERSION, CannotBuild, Source
from enginehouse.optimize.sources import gguf_header
from enginehouse.optimize.sources.files import read_json

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
TOKENIZERS = ("gpt2", "llama")  # byte-level BPE, and SentencePiece's
# after the architecture's name in the header -> in config.json
NUMBERS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
}
OPTIONAL = ("attention.head_count_kv", "attention.key_length")
# What the header may say besides, and says again of the numbers above.
ROPE = "rope.scaling."
REST = ("vocab_size", "rope.freq_base", "rope.dimension_count", "attention.value_length", "tensor_data_layout")
SCALED = ("linear", "yarn")
FREQUENCIES = "rope_freqs.weight"
IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}


def architecture_of(source: Source) -> str:
    """In the words of transformers, where they are known."""
    try:
        return str(config_of(source)["architectures"][0])
    except CannotBuild:
        return source.architecture


def config_of(source: Source) -> dict[str, Any]:
    """The config.json of a checkpoint, there or to be made. Raises CannotBuild where it cannot be."""
    if source.kind != "gguf":
        return read_json(Path(source.path) / "config.json")
    for module, distribution in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        if importlib.util.find_spec(module) is None:
            raise CannotBuild(
                f"a .gguf file is read by '{distribution}', which is not installed; pip install 'enginehouse[llamacpp]'"
            )
    return read_config(source)


def folder_of(source: Source, cache: Path) -> Path:
    """Where the checkpoint lies that is made of a .gguf file."""
    return intermediate.place(cache, "dequantized", DEQUANTIZED_VERSION, source.fingerprint)


def read_config(source: Source) -> dict[str, Any]:
    """Its config.json, but for tie_word_embeddings and the factors of Llama 3's positions, which weights tell.

    Raises CannotBuild for an architecture that is not read, and for everything in the header that would not be carried
    over: what a file says of its model is never dropped.
    """
    path = Path(source.path)
    keys, tensors = gguf_header.read(path)
    architecture = str(keys.get("general.architecture", ""))
    if architecture not in CLASSES:
        known = ", ".join(CLASSES)
        raise CannotBuild(f"'{architecture}' models are not read from gguf files here; these are: {known}")
    if (kind := keys.get("tokenizer.ggml.model")) not in TOKENIZERS:
        known = ", ".join(TOKENIZERS)
        raise CannotBuild(
            f"'{path.name}' has a tokenizer of kind '{kind}', not read from gguf files here: have {known}"
        )
    said = {
        key.removeprefix(f"{architecture}."): value for key, value in keys.items() if key.startswith(f"{architecture}.")
    }
    if missing := [key for key in NUMBERS if key not in said and key not in OPTIONAL]:
        raise CannotBuild(f"'{path.name}' does not say '{architecture}.{missing[0]}'; download it again")
    config = {word: said[key] for key, word in NUMBERS.items() if key in said}
    check_numbers(path.name, config)
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config["rope_parameters"] = rope(said)
    config["vocab_size"] = rows(path.name, tensors)
    same = {
        "vocab_size": config["vocab_size"],
        "rope.dimension_count": config["head_dim"],
        "attention.value_length": config["head_dim"],
    }
    for key, value in said.items():
        if key in same and value != same[key]:
            raise CannotBuild(
                f"'{path.name}' says '{architecture}.{key}' {value}, where {same[key]} fits what else it says"
            )
        if key not in NUMBERS and key not in REST and not key.startswith(ROPE) and not says_nothing(value):
            raise CannotBuild(f"'{path.name}' says '{architecture}.{key}', which is not carried over to other engines")
    ids = {word: keys.get(f"tokenizer.ggml.{name}_token_id") for name, word in IDS.items()}
    return {
        "architectures": [CLASSES[architecture]],
        "model_type": architecture,
        "hidden_act": "silu",
        "dtype": "bfloat16",
        **config,
        **ids,
    }


def says_nothing(value: Any) -> bool:
    return not isinstance(value, bool) and value in (0, "none")


def check_numbers(name: str, config: dict[str, Any]) -> None:
    for word, value in config.items():
        kinds = (float,) if word == "rms_norm_eps" else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
            raise CannotBuild(f"'{name}' gives '{value}' as the model's {word}; it is damaged, download it again")


def rope(said: dict[str, Any]) -> dict[str, Any]:
    kind = str(said.get(f"{ROPE}type", "none"))
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base", 10_000.0))}
    scaling = {key: value for key, value in said.items() if key.startswith(ROPE) and not says_nothing(value)}
    scaling.pop(f"{ROPE}type", None)
    if kind in SCALED:
        parameters |= {"rope_type": kind, "factor": scaling.pop(f"{ROPE}factor", None)}
        original = scaling.pop(f"{ROPE}original_context_length", None)
        parameters |= {"original_max_position_embeddings": original} if kind == "yarn" else {}
    scaling.pop(f"{ROPE}finetuned", None)
    if scaling or kind not in ("none", *SCALED) or None in parameters.values():
        named = next(iter(scaling), f"{ROPE}type")
        raise CannotBuild(f"its '{named}' of '{kind}' positions is not carried over to other engines")
    return parameters


def rows(name: str, tensors: list[gguf_header.Tensor]) -> int:
    """Of the embedding, which lies in the first part of a split file."""
    embedding = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None or len(embedding.shape) != 2:
        raise CannotBuild(f"'{name}' has no 'token_embd.weight'; download it again")
    return embedding.shape[0]
