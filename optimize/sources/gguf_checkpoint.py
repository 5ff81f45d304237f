"""What a .gguf file would be as a Hugging Face checkpoint, by its header alone: the config, and what forbids it."""

import importlib.util
import math
from pathlib import Path
from typing import Any

from enginehouse.optimize import intermediate
from enginehouse.optimize.artifact import DEQUANTIZED_VERSION, CannotBuild, Source
from enginehouse.optimize.sources import gguf_header
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.gguf_architectures import (
    ARCHITECTURES,
    FLOATS,
    NUMBERS,
    OPTIONAL,
    Architecture,
    says_nothing,
)
from enginehouse.optimize.sources.resolve import parts_of

TOKENIZERS = ("gpt2", "llama")  # byte-level BPE, and SentencePiece's
# What the header may say besides, and says again of the numbers.
ROPE, PATTERN = "rope.scaling.", "attention.sliding_window_pattern"
TUNED, LOG = f"{ROPE}finetuned", f"{ROPE}yarn_log_multiplier"
REST = (
    "vocab_size", "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "attention.value_length",
    "tensor_data_layout", PATTERN,
)  # fmt: skip
SCALED = ("linear", "yarn")
FREQUENCIES = "rope_freqs.weight"
IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}


class Stored(gguf_header.Tensor, frozen=True):
    file: Path = Path()


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


def described(source: Source) -> dict[str, Any]:
    """Its config.json, {} where it has none."""
    try:
        return config_of(source)
    except CannotBuild:
        return {}


def folder_of(source: Source, cache: Path) -> Path:
    """Where the checkpoint lies that is made of a .gguf file."""
    return intermediate.place(cache, "dequantized", DEQUANTIZED_VERSION, source.fingerprint)


def read_config(source: Source) -> dict[str, Any]:
    """Its config.json, but for tie_word_embeddings and the factors of Llama 3's positions, which weights tell.

    Raises CannotBuild for an architecture that is not read, and for everything in the header that would not be carried
    over: what a file says of its model is never dropped.
    """
    path = Path(source.path)
    keys, held = read_parts(path)
    name = str(keys.get("general.architecture", ""))
    said = {key.removeprefix(f"{name}."): value for key, value in keys.items() if key.startswith(f"{name}.")}
    architecture = architecture_named(name, said)
    if (kind := keys.get("tokenizer.ggml.model")) not in TOKENIZERS:
        known = ", ".join(TOKENIZERS)
        raise CannotBuild(
            f"'{path.name}' has a tokenizer of kind '{kind}', not read from gguf files here: have {known}"
        )
    config = numbers(path.name, architecture, said)
    config["vocab_size"] = rows(path.name, held)
    config |= {word: told in held for word, told in architecture.flags.items()}
    config |= layers(architecture, config)
    check_rest(path.name, architecture, said, config)
    config["rope_parameters"] = rope(said, architecture, config)
    ids = {word: keys.get(f"tokenizer.ggml.{told}_token_id") for told, word in IDS.items()}
    return {
        "architectures": [architecture.model],
        "model_type": architecture.model_type,
        "hidden_act": "silu",
        "dtype": "bfloat16",
        **architecture.always,
        **config,
        **ids,
    }


def read_parts(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The header's keys, and the tensors of all parts of a split file by their names."""
    keys, first = gguf_header.read(path)
    held: dict[str, Stored] = {}
    for part in parts_of(path, int(keys.get("split.count", 1))):
        for tensor in first if part == path else gguf_header.read(part)[1]:
            held[tensor.name] = Stored(tensor.name, tensor.kind, tensor.shape, tensor.offset, tensor.bytes, part)
    return keys, held


def architecture_named(name: str, said: dict[str, Any]) -> Architecture:
    for architecture in ARCHITECTURES:
        where = architecture.where
        if architecture.name == name and (not where or not says_nothing(said.get(where, 0))):
            return architecture
    known = ", ".join(dict.fromkeys(architecture.name for architecture in ARCHITECTURES))
    raise CannotBuild(f"'{name}' models are not read from gguf files here; these are: {known}")


def numbers(file: str, architecture: Architecture, said: dict[str, Any]) -> dict[str, Any]:
    needed = NUMBERS | architecture.numbers
    if missing := [key for key in needed if key not in said]:
        raise CannotBuild(f"'{file}' does not say '{architecture.name}.{missing[0]}'; download it again")
    optional = OPTIONAL | architecture.optional
    config = {word: said[key] for key, word in needed.items()}
    config |= {word: said[key] for key, word in optional.items() if not says_nothing(said.get(key, 0))}
    for word, value in config.items():
        kinds = (float,) if word in FLOATS else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
            raise CannotBuild(f"'{file}' gives '{value}' as the model's {word}; it is damaged, download it again")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if "original_max_position_embeddings" in optional.values():
        config.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return config


def layers(architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """What differs from layer to layer, and from one size of the model to another."""
    told: dict[str, Any] = {}
    if architecture.full_every:
        windows = [(layer + 1) % architecture.full_every != 0 for layer in range(config["num_hidden_layers"])]
        told["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
    if architecture.by_width:
        wide = config["num_hidden_layers"] == architecture.by_width
        by_width = config["hidden_size"] // config["num_attention_heads"]
        told["query_pre_attn_scalar"] = by_width if wide else config["head_dim"]
    return told


def check_rest(file: str, architecture: Architecture, said: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuses what is said otherwise elsewhere, and what is said and not read."""
    size = config["head_dim"]
    same = {"vocab_size": config["vocab_size"], "attention.value_length": size}
    if not architecture.partial or not 0 < said.get("rope.dimension_count", size) <= size:
        same["rope.dimension_count"] = size
    if architecture.full_every:
        windows = [kind == "sliding_attention" for kind in config["layer_types"]]
        same[PATTERN] = architecture.full_every if isinstance(said.get(PATTERN), int) else windows
    known = {*NUMBERS, *OPTIONAL, *architecture.numbers, *architecture.optional, *architecture.unread, *REST}
    if not architecture.full_every:
        known.remove(PATTERN)
    if not architecture.own_rope:
        known.remove("rope.freq_base_swa")
    for key, value in said.items():
        if key in same and value != same[key]:
            raise CannotBuild(
                f"'{file}' says '{architecture.name}.{key}' {value}, where {same[key]} fits what else it says"
            )
        if key not in known and not key.startswith(ROPE) and not says_nothing(value):
            raise CannotBuild(f"'{file}' says '{architecture.name}.{key}', which is not carried over to other engines")


def rope(said: dict[str, Any], architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    kind = str(said.get(f"{ROPE}type", "none"))
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base", 10_000.0))}
    if (turned := said.get("rope.dimension_count", config["head_dim"])) != config["head_dim"]:
        parameters["partial_rotary_factor"] = turned / config["head_dim"]
    known = (f"{ROPE}type", *architecture.optional, *(() if architecture.tuned_rope else (TUNED,)))
    scaling = {key: value for key, value in said.items() if key.startswith(ROPE) and key not in known}
    scaling = {
        key: value for key, value in scaling.items() if not says_nothing(value) and (key, value) != (TUNED, True)
    }
    if kind in SCALED:
        parameters |= {"rope_type": kind, "factor": scaling.pop(f"{ROPE}factor", None)}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = scaling.pop(f"{ROPE}original_context_length", None)
        betas = {f"beta_{which}": scaling.pop(f"{ROPE}yarn_beta_{which}", None) for which in ("fast", "slow")}
        parameters |= {word: value for word, value in betas.items() if value is not None}
    if "llama_4_scaling_beta" in config:
        parameters |= ministral(scaling, config)
    if f"{ROPE}attn_factor" in scaling:
        kind = "longrope"
    scaled = ("linear",) if architecture.own_rope else SCALED
    if scaling or kind not in ("none", *scaled) or None in parameters.values():
        named = next(iter(scaling), f"{ROPE}type")
        raise CannotBuild(f"its '{named}' of '{kind}' positions is not carried over to other engines")
    if not architecture.own_rope:
        return parameters
    near = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base_swa", 10_000.0))}
    return {"full_attention": parameters, "sliding_attention": near}


def ministral(scaling: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Its YaRN does not change how much attention counts, which llama.cpp and transformers say in their own ways."""
    if (logarithm := scaling.pop(LOG, None)) != 1:
        raise CannotBuild(f"its '{LOG}' {logarithm} is not carried over to other engines; known: 1")
    return {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": config.pop("llama_4_scaling_beta")}


def rows(name: str, held: dict[str, Stored]) -> int:
    """Of the embedding."""
    embedding = held.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CannotBuild(f"'{name}' has no 'token_embd.weight'; download it again")
    return embedding.shape[0]
