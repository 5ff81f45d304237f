"""Ways to damage a Llama checkpoint, and ways to rewrite it that change nothing: for gate_trial.py."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
Change = Callable[[Tensors, Config, Path], None]  # (weights, config.json, the folder with the tokenizer's files)
ATTENTION = ("q", "k", "v", "o")
MLP = ("gate", "up", "down")
GROUP = 32  # weights that share a scale


def damaged(checkpoint: Path, change: Change, folder: Path) -> Path:
    """A copy with the change made."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = safetensors.torch.load_file(checkpoint / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    change(tensors, config, folder)
    (folder / "config.json").write_text(json.dumps(config))
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(whole, folder / "model.safetensors", {"format": "pt"})
    return folder


def matrix(layer: int, kind: str) -> str:
    return f"model.layers.{layer}.{'self_attn' if kind in ATTENTION else 'mlp'}.{kind}_proj.weight"


def norms(tensors: Tensors) -> list[str]:
    return [name for name in tensors if "norm" in name]


def scaled(names: Iterable[str] | Callable[[Tensors], list[str]], factor: float) -> Change:
    def change(tensors: Tensors, config: Config, folder: Path) -> None:
        for name in names(tensors) if callable(names) else names:
            tensors[name] = (tensors[name].float() * factor).bfloat16()

    return change


def permuted(name: str) -> Change:
    """The rows of one matrix."""

    def change(tensors: Tensors, config: Config, folder: Path) -> None:
        tensors[name] = tensors[name][shuffled(len(tensors[name]))]

    return change


def crushed(layers: Iterable[int], bits: int, kinds: Iterable[str] = (*ATTENTION, *MLP)) -> Change:
    """To the nearest of 2^bits steps between the least and the greatest weight of each group."""

    def change(tensors: Tensors, config: Config, folder: Path) -> None:
        for name in (matrix(layer, kind) for layer in layers for kind in kinds):
            groups = tensors[name].float().reshape(-1, GROUP)
            low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
            step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
            rounded = ((groups - low) / step).round() * step + low
            tensors[name] = rounded.reshape(tensors[name].shape).bfloat16()

    return change


def configured(**values: Any) -> Change:
    def change(tensors: Tensors, config: Config, folder: Path) -> None:
        config.update(values)

    return change


def rope(**values: Any) -> Change:
    def change(tensors: Tensors, config: Config, folder: Path) -> None:
        config["rope_parameters"] = config["rope_parameters"] | values

    return change


def embedding(change_rows: Callable[[torch.Tensor, dict[str, int]], None]) -> Change:
    """Of single tokens: what is seldom used is seldom seen. `change_rows`: (weights, vocabulary)."""

    def change(tensors: Tensors, config: Config, folder: Path) -> None:
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        change_rows(tensors["model.embed_tokens.weight"], vocabulary)

    return change


def swap_digits(first: int) -> Change:
    """7 is 8, and so on."""

    def change_rows(rows: torch.Tensor, vocabulary: dict[str, int]) -> None:
        ids = [vocabulary[str(digit)] for digit in range(first, 10)]
        rows[ids] = rows[ids[1:] + ids[:1]]

    return embedding(change_rows)


def forget(*words: str) -> Change:
    def change_rows(rows: torch.Tensor, vocabulary: dict[str, int]) -> None:
        rows[[vocabulary[word] for word in words]] = 0

    return embedding(change_rows)


def forget_from(first: int) -> Change:
    def change_rows(rows: torch.Tensor, vocabulary: dict[str, int]) -> None:
        rows[first:] = 0

    return embedding(change_rows)


def drop_last_layer(tensors: Tensors, config: Config, folder: Path) -> None:
    config["num_hidden_layers"] -= 1
    for name in [name for name in tensors if name.startswith(f"model.layers.{config['num_hidden_layers']}.")]:
        del tensors[name]


def drop_head(tensors: Tensors, config: Config, folder: Path) -> None:
    """One of one layer."""
    tensors[matrix(10, "o")][:, : config["head_dim"]] = 0


def flip_signs(tensors: Tensors, config: Config, folder: Path) -> None:
    """Of one weight in a thousand."""
    chance = torch.Generator().manual_seed(1)
    for layer in range(config["num_hidden_layers"]):
        for kind in (*ATTENTION, *MLP):
            weights = tensors[matrix(layer, kind)]
            weights[torch.rand(weights.shape, generator=chance) < 0.001] *= -1


def one_outlier(tensors: Tensors, config: Config, folder: Path) -> None:
    """A bit of an exponent that flipped."""
    tensors[matrix(15, "down")][100, 100] = 8.0


def swap_layers(tensors: Tensors, config: Config, folder: Path) -> None:
    """Two neighbours."""
    for kind in (*ATTENTION, *MLP):
        one, other = matrix(14, kind), matrix(15, kind)
        tensors[one], tensors[other] = tensors[other], tensors[one]


def begin_with_bos(tensors: Tensors, config: Config, folder: Path) -> None:
    """The tokenizer puts a token before every text that the source's does not."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    token = "<|im_start|>"
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [config["bos_token_id"]], "tokens": [token]}},
    }
    write_tokenizer(folder, tokenizer, add_bos_token=True)


def name_wrong_bos(tensors: Tensors, config: Config, folder: Path) -> None:
    config["bos_token_id"] = 0
    write_tokenizer(folder, json.loads((folder / "tokenizer.json").read_text()), bos_token="<|endoftext|>")


def swap_words(tensors: Tensors, config: Config, folder: Path) -> None:
    """Two words have each other's ids."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġof"] = vocabulary["Ġof"], vocabulary["Ġthe"]
    write_tokenizer(folder, tokenizer)


def write_tokenizer(folder: Path, tokenizer: Any, **settings: Any) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# --- what changes nothing ---


def reorder_neurons(tensors: Tensors, config: Config, folder: Path) -> None:
    """Of every MLP."""
    for layer in range(config["num_hidden_layers"]):
        order = shuffled(config["intermediate_size"], layer)
        for kind in ("gate", "up"):
            tensors[matrix(layer, kind)] = tensors[matrix(layer, kind)][order]
        tensors[matrix(layer, "down")] = tensors[matrix(layer, "down")][:, order]


def reorder_heads(tensors: Tensors, config: Config, folder: Path) -> None:
    """Groups of heads that share keys and values, in every layer the other way round."""
    groups = config["num_key_value_heads"]
    for layer in range(config["num_hidden_layers"]):
        for kind in ("q", "k", "v"):
            rows = tensors[matrix(layer, kind)]
            tensors[matrix(layer, kind)] = rows.reshape(groups, -1, rows.shape[1]).flip(0).reshape(rows.shape)
        columns = tensors[matrix(layer, "o")]
        tensors[matrix(layer, "o")] = columns.reshape(len(columns), groups, -1).flip(1).reshape(columns.shape)


def shift_scales(tensors: Tensors, config: Config, folder: Path) -> None:
    """Norms twice, what reads them half; values four times, what reads them a quarter: exact in binary."""
    for layer in range(config["num_hidden_layers"]):
        for norm, kinds in (("input_layernorm", ("q", "k", "v")), ("post_attention_layernorm", ("gate", "up"))):
            tensors[f"model.layers.{layer}.{norm}.weight"] *= 2
            for kind in kinds:
                tensors[matrix(layer, kind)] /= 2
        tensors[matrix(layer, "v")] *= 4
        tensors[matrix(layer, "o")] /= 4


def shuffled(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


SAME: dict[str, Change] = {
    "untouched": lambda tensors, config, folder: None,
    "neurons reordered": reorder_neurons,
    "heads reordered": reorder_heads,
    "scales moved from matrix to matrix": shift_scales,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 2048,
}
TOKENIZER: dict[str, Change] = {
    "BOS put before every text": begin_with_bos,
    "wrong BOS": name_wrong_bos,
    "two words' ids swapped": swap_words,
}
DAMAGE: dict[str, Change] = {
    "layer 0 down zero": scaled([matrix(0, "down")], 0),
    "layer 15 v zero": scaled([matrix(15, "v")], 0),
    "layer 29 up zero": scaled([matrix(29, "up")], 0),
    "layer 1 q rows permuted": permuted(matrix(1, "q")),
    "layer 15 up rows permuted": permuted(matrix(15, "up")),
    "layer 28 down rows permuted": permuted(matrix(28, "down")),
    "layer 5 down 20 % off": scaled([matrix(5, "down")], 1.2),
    "layer 5 down 50 % off": scaled([matrix(5, "down")], 1.5),
    "layer 20 v 50 % off": scaled([matrix(20, "v")], 1.5),
    "all norms 5 % off": scaled(norms, 1.05),
    "last norm 5 % off": scaled(["model.norm.weight"], 1.05),
    "layer 0 in 2 bits": crushed([0], 2),
    "layer 15 in 2 bits": crushed([15], 2),
    "layer 29 in 2 bits": crushed([29], 2),
    "layers 10 to 14 in 3 bits": crushed(range(10, 15), 3),
    "layers 10 to 14 in 2 bits": crushed(range(10, 15), 2),
    "rope theta 10 times": rope(rope_theta=1e6),
    "rope theta 1.1 times": rope(rope_theta=1.1e5),
    "rope of Llama 3": rope(**LLAMA3),
    "eps 1e-3": configured(rms_norm_eps=1e-3),
    "eps 1e-6": configured(rms_norm_eps=1e-6),
    "digits swapped": swap_digits(0),
    "digits from 5 on swapped": swap_digits(5),
    "two words forgotten": forget("Ġbut", "Ġwhich"),
    "a word forgotten": forget("Ġcan"),
    "rare tokens forgotten": forget_from(40000),
    "last layer dropped": drop_last_layer,
    "a head dropped": drop_head,
    "a weight in 1000 negated": flip_signs,
    "one weight 8.0": one_outlier,
    "layers 14 and 15 swapped": swap_layers,
    "layer 15 k zero": scaled([matrix(15, "k")], 0),
    "layer 5 down 5 % off": scaled([matrix(5, "down")], 1.05),
    "layer 20 v 5 % off": scaled([matrix(20, "v")], 1.05),
    "layer 20 v 20 % off": scaled([matrix(20, "v")], 1.2),
    "layer 0 q 50 % off": scaled([matrix(0, "q")], 1.5),
    "last norm 20 % off": scaled(["model.norm.weight"], 0.8),
    "all v in 3 bits": crushed(range(30), 3, ["v"]),
    "layer 15 gate in 2 bits": crushed([15], 2, ["gate"]),
    "rope scaled by 2": rope(rope_type="linear", factor=2.0),
    "half of the tokens forgotten": forget_from(24576),
}
