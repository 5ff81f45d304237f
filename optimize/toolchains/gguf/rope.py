"""Rotary position embeddings: from the checkpoint's description of them to GGUF's keys and factor tensors."""

import math
from typing import Any, TypeVar

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.toolchains.gguf.config import Config, Value

T = TypeVar("T")


class Scaling(msgspec.Struct, frozen=True):
    """One layer type's `rope_parameters`, or the older `rope_scaling`."""

    rope_type: str = ""
    type: str = "default"  # until transformers 4.43
    rope_theta: float | None = None
    partial_rotary_factor: float | None = None
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    long_factor: list[float] = []
    short_factor: list[float] = []
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def variant(self) -> str:
        name = self.rope_type or self.type
        return "longrope" if name == "su" else name  # Phi-3's first name for it


def rope(config: Config, architecture: str, known: tuple[str, ...]) -> tuple[dict[str, Value], dict[str, list[float]]]:
    """Keys and float32 tensors; `known`: the variants llama.cpp computes as transformers does for this architecture."""
    parameters = config.rope_parameters or config.rope_scaling or {}
    scaling = decode_scaling(parameters.get("full_attention", parameters))
    sliding = decode_scaling(parameters.get("sliding_attention", {}))
    for layers in (scaling, sliding):
        if layers.variant not in known:
            raise CannotBuild(
                f"rope variant '{layers.variant}' of a {architecture} model is not known; known: {', '.join(known)}"
            )
    if sliding.variant != "default":
        raise CannotBuild(f"rope variant '{sliding.variant}' on sliding layers is not known; known: default")

    base = scaling.rope_theta or config.rope_theta or 10_000.0
    share = scaling.partial_rotary_factor or config.partial_rotary_factor or 1.0
    if share != 1 and architecture != "phi3":
        raise CannotBuild(f"'partial_rotary_factor' {share} is not known for a {architecture} model; known: 1.0")
    turned = int(config.head_size * share)
    keys: dict[str, Value] = {"rope.freq_base": base, "rope.dimension_count": turned}
    sliding_base = sliding.rope_theta or config.rope_local_base_freq
    if sliding_base:
        keys["rope.freq_base_swa"] = sliding_base

    match scaling.variant:
        case "linear":
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": needed(scaling.factor, "factor")}
        case "yarn":
            keys |= yarn(scaling, config)
        case "llama3":
            return keys, {"rope_freqs.weight": llama3_divisors(scaling, base, turned)}
        case "longrope":
            return keys | longrope(scaling, config), longrope_factors(scaling, turned)
    return keys, {}


def decode_scaling(parameters: dict[str, Any]) -> Scaling:
    try:
        return msgspec.convert(parameters, Scaling)
    except msgspec.ValidationError as error:
        raise CannotBuild(f"rope parameters in config.json are not known: {error}") from error


def needed(value: T | None, name: str) -> T:
    if value is None:
        raise CannotBuild(f"rope parameters in config.json lack '{name}'")
    return value


def yarn(scaling: Scaling, config: Config) -> dict[str, Value]:
    # llama.cpp derives the attention factor itself, as 0.1 ln(factor) + 1
    usual = {"attention_factor": None, "mscale": None, "mscale_all_dim": None, "beta_fast": 32, "beta_slow": 1}
    if not scaling.truncate:
        raise CannotBuild("yarn's 'truncate' false is not known; known: true")
    for name, value in usual.items():
        given = getattr(scaling, name)
        if given is not None and given != value:
            raise CannotBuild(f"yarn's '{name}' {given} is not known; known: {value or 'not given'}")
    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": needed(scaling.factor, "factor"),
        "rope.scaling.original_context_length": original,
    }


def llama3_divisors(scaling: Scaling, base: float, turned: int) -> list[float]:
    """What llama.cpp divides each frequency by: 1 for the short waves, `factor` for the long, in between a blend."""
    factor = needed(scaling.factor, "factor")
    original = needed(scaling.original_max_position_embeddings, "original_max_position_embeddings")
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    divisors = []
    for i in range(0, turned, 2):
        turns = original / (2 * math.pi * base ** (i / turned))
        blend = min(1.0, max(0.0, (turns - low) / (high - low)))
        divisors.append(1 / ((1 - blend) / factor + blend))
    return divisors


def longrope(scaling: Scaling, config: Config) -> dict[str, Value]:
    original = scaling.original_max_position_embeddings or config.original_max_position_embeddings
    original = needed(original, "original_max_position_embeddings")
    factor = scaling.factor or config.max_position_embeddings / original
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": scaling.attention_factor or attention,
    }


def longrope_factors(scaling: Scaling, turned: int) -> dict[str, list[float]]:
    for name, factors in (("long_factor", scaling.long_factor), ("short_factor", scaling.short_factor)):
        if len(factors) != turned // 2:
            raise CannotBuild(f"longrope's '{name}' has {len(factors)} numbers, needs {turned // 2}")
    return {
        "rope_factors_long.weight": scaling.long_factor,
        "rope_factors_short.weight": scaling.short_factor,
    }
