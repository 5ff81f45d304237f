"""Which checkpoints mlx_lm computes as transformers does, and their configs in the words mlx_lm knows."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.sources.quantizations import already_quantized


class Family(msgspec.Struct, frozen=True):
    """What was compared with transformers, token by token, for one model_type."""

    ropes: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    tied: bool = False  # what transformers takes where the config does not say tie_word_embeddings
    windows: bool = False  # mlx_lm keeps to the sliding window; elsewhere it reads every token
    partial: bool = False  # mlx_lm turns a part of each head where the config says so
    activation: str = "silu"  # mlx_lm's own, whatever the config says


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi3": Family(ropes=("default",), partial=True),
    "gemma3_text": Family(ropes=("default", "linear"), tied=True, windows=True, activation="gelu_pytorch_tanh"),
    "qwen3_moe": Family(ropes=("default",)),
    "mixtral": Family(ropes=("default",)),
    "olmo2": Family(ropes=("default",)),
    "granite": Family(ropes=("default",)),
    "smollm3": Family(ropes=("default",)),
    "stablelm": Family(ropes=("default",), partial=True),
    "glm4": Family(ropes=("default",), partial=True),
}
# What transformers calls a text model that mlx_lm has under the name of the whole: it reads either config.
WHOLE = {"qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe"}
YARN_OWN = ("attention_factor", "truncate")  # mlx_lm has no such words
OLDER_KINDS = {
    "linear_attention": "mamba",
    "full_attention": "attention",
}  # of layers: transformers 5's words -> before
GEMMA3_PATTERN = 6  # every sixth layer sees all tokens


def refusal(config: dict[str, Any], folder: Path | None) -> str | None:
    """Why the checkpoint of this config is not converted, or None. `folder`: None where it is yet to be made. Looks at
    the names of files."""
    kind = config.get("model_type", "")
    family = FAMILIES.get(kind)
    if reason := already_quantized(config):
        return reason
    needed = ("tokenizer.json", "model*.safetensors") if folder else ()
    missing = [name for name in needed if folder and not any(folder.glob(name))]
    if missing:
        return f"the checkpoint has no {missing[0]}"
    if family is None:
        return None if known(WHOLE.get(kind, kind)) else f"mlx_lm has no model of type '{kind}'"
    activation = config.get("hidden_activation") or config.get("hidden_act") or family.activation
    if activation != family.activation:
        return f"mlx_lm computes '{kind}' with '{family.activation}', the model wants '{activation}'"
    return positions(config, family) or (None if family.windows else window(config))


def known(kind: str) -> bool:
    """Whether mlx_lm has a file for it, or another name: it is not imported for that."""
    package = importlib.util.find_spec("mlx_lm")
    folder = Path(package.origin).parent if package and package.origin else None
    return bool(folder and re.fullmatch(r"\w+", kind) and (folder / "models" / f"{kind}.py").exists())


def positions(config: dict[str, Any], family: Family) -> str | None:
    for rope in ropes(config):
        kind = rope.get("rope_type") or rope.get("type") or "default"
        strange = [name for name in YARN_OWN if rope.get(name) is not None]
        if not family.partial and (rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1) != 1:
            strange.append("partial_rotary_factor")
        if kind not in family.ropes or strange:
            named = f"'{kind}' positions" + (f" with '{strange[0]}'" if strange else "")
            return f"mlx_lm does not compute {named} of '{config['model_type']}' as transformers does"
    return None


def window(config: dict[str, Any]) -> str | None:
    size = config.get("sliding_window")
    reach = config.get("max_position_embeddings") or 0
    if size and size < reach and config.get("use_sliding_window", True):
        kind = config["model_type"]
        return f"the model looks back {size} of its {reach} tokens, and mlx_lm looks back at all of them in '{kind}'"
    return None


def ropes(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What is said of rotary positions: once, or once for each kind of layer."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return [entry for entry in given.values() if isinstance(entry, dict)] or [given]


def translate(config: dict[str, Any]) -> dict[str, Any]:
    """What goes over a config.json of transformers 5 before mlx_lm reads it: most of its models look for `rope_theta`
    and `rope_scaling`, and take a default of their own when those lie in `rope_parameters`, without a word."""
    kind = config.get("model_type", "")
    family = FAMILIES.get(kind)
    keywords: dict[str, Any] = {"model_type": WHOLE[kind]} if kind in WHOLE else {}
    keywords |= {} if family is None else {"tie_word_embeddings": config.get("tie_word_embeddings", family.tied)}
    if "num_local_experts" in config:
        keywords["num_experts"] = config["num_local_experts"]
    if kind == "granitemoehybrid":
        keywords["layer_types"] = [OLDER_KINDS.get(kind, kind) for kind in config["layer_types"]]
    given = config.get("rope_parameters")
    if not given:
        return keywords
    if kind == "gemma3_text":
        return keywords | translate_gemma3(config, given)
    if len({kind.get("rope_theta") for kind in ropes(config)}) == 1:  # OLMo 3's windows have the same rotation
        given = given.get("full_attention", given)
    if "rope_theta" not in given:
        return keywords
    keywords |= {name: given[name] for name in ("rope_theta", "partial_rotary_factor") if name in given}
    return keywords | scaling(given)


def translate_gemma3(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    everywhere, near = given["full_attention"], given["sliding_attention"]
    return {
        "rope_theta": everywhere["rope_theta"],
        "rope_local_base_freq": near["rope_theta"],
        "sliding_window_pattern": config.get("_sliding_window_pattern") or GEMMA3_PATTERN,
    } | scaling(everywhere)


def scaling(given: dict[str, Any]) -> dict[str, Any]:
    kind = given.get("rope_type", "default")
    return {"rope_scaling": None if kind == "default" else given | {"type": kind}}  # some want to hear of it
