"""Decides a whole conversion from the headers: what becomes of every tensor, and GGUF's keys."""

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.safetensors import ITEM_BYTES, StoredTensor
from enginehouse.optimize.toolchains.gguf.config import Config, Value
from enginehouse.optimize.toolchains.gguf.families import EXPERT, GEMMA3, Family
from enginehouse.optimize.toolchains.gguf.rope import rope

VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


class Target(msgspec.Struct, frozen=True):
    """What becomes of one tensor."""

    name: str
    shape: tuple[int, ...]
    expert: int | None = None  # GGUF has one tensor of all experts
    rotate_heads: int = 0  # heads whose rows are brought from halves into pairs; 0 for none
    add_one: bool = False


class Plan(msgspec.Struct, frozen=True):
    architecture: str
    metadata: dict[str, Value]
    targets: dict[str, Target]  # by name in the checkpoint
    factors: dict[str, list[float]]  # float32 tensors of our own making
    left_out: list[str]  # vision tensors


def plan(config: Config, family: Family, stored: dict[str, StoredTensor]) -> Plan:
    """Decides the conversion; raises CannotBuild for whatever is not exactly what the family has."""
    check_heads(config, family)
    check_traits(config, family)
    rope_keys, factors = rope(config, family.architecture, family.ropes)
    # by the name in a text model: the name in the checkpoint
    names = {text_name(name): name for name in stored if not name.startswith(VISION)}
    names = {known: name for known, name in names.items() if not known.endswith("rotary_emb.inv_freq")}
    tied = config.tie_word_embeddings
    if tied is None:
        tied = "lm_head.weight" not in names
    expected = targets(config, family, tied)
    if tied:
        names.pop("lm_head.weight", None)
    for known, name in names.items():
        if known not in expected:
            raise CannotBuild(f"tensor '{name}' is not part of a {family.architecture} model as llama.cpp knows it")
    for known, target in expected.items():
        if known not in names:
            raise CannotBuild(f"tensor '{known}' is missing from the checkpoint; download it again")
        check_stored(names[known], stored[names[known]], target)
    return Plan(
        architecture=family.architecture,
        metadata=metadata(config, family) | {f"{family.architecture}.{k}": v for k, v in rope_keys.items()},
        targets={names[known]: target for known, target in expected.items()},
        factors=factors,
        left_out=[name for name in stored if name.startswith(VISION)],
    )


def text_name(name: str) -> str:
    """A text model's tensor name without what a vision model puts around it (two layouts, by transformers version)."""
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name.removeprefix("language_model.")


def check_heads(config: Config, family: Family) -> None:
    if config.num_attention_heads % config.key_value_heads:
        raise CannotBuild(f"{config.num_attention_heads} heads do not divide over {config.key_value_heads} key heads")
    if not family.free_head_size and config.head_size * config.num_attention_heads != config.hidden_size:
        raise CannotBuild(
            f"'head_dim' {config.head_size} is not hidden size / heads, which a {family.architecture} model needs"
        )


def check_traits(config: Config, family: Family) -> None:
    name = family.architecture
    activation = config.hidden_activation or config.hidden_act or family.activation
    if activation != family.activation:
        raise CannotBuild(f"activation '{activation}' is not known for a {name} model; known: {family.activation}")
    if config.attn_logit_softcapping or config.final_logit_softcapping:
        raise CannotBuild(f"logit softcapping is not known for a {name} model")
    if config.use_bidirectional_attention:
        raise CannotBuild("'use_bidirectional_attention' makes this an encoder; only decoders are converted")
    if config.query_pre_attn_scalar is not None:
        # llama.cpp knows the 27B by its 62 layers and scales that one by hidden size / heads
        scalar = config.head_size
        if config.num_hidden_layers == 62:
            scalar = config.hidden_size // config.num_attention_heads
        if config.query_pre_attn_scalar != scalar:
            raise CannotBuild(f"'query_pre_attn_scalar' {config.query_pre_attn_scalar:g} is not known; known: {scalar}")


def check_stored(name: str, tensor: StoredTensor, target: Target) -> None:
    if tensor.dtype not in ITEM_BYTES:
        raise CannotBuild(f"tensor '{name}' is stored as '{tensor.dtype}'; known: {', '.join(ITEM_BYTES)}")
    if tensor.shape != target.shape:
        raise CannotBuild(f"tensor '{name}' has shape {list(tensor.shape)}, config.json says {list(target.shape)}")


def targets(config: Config, family: Family, tied: bool) -> dict[str, Target]:
    """Every tensor the family must have, by its name in the checkpoint, in the order they are written."""
    dimensions = sizes(config)
    table: dict[str, tuple[str, str, int | None]] = {
        "model.embed_tokens.weight": ("token_embd.weight", "vocabulary hidden", None)
    }
    for i in range(config.num_hidden_layers):
        for name, (gguf_name, shape) in family.layer.items():
            stacked = EXPERT in name
            for expert in range(dimensions["experts"]) if stacked else (None,):
                own = name.replace(EXPERT, f".{expert}.")
                table[f"model.layers.{i}.{own}"] = (f"blk.{i}.{gguf_name}", shape, expert)
    table["model.norm.weight"] = ("output_norm.weight", "hidden", None)
    table |= {name: (*entry, None) for name, entry in family.last.items()}
    if not tied:
        table["lm_head.weight"] = ("output.weight", "vocabulary hidden", None)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.key_value_heads} if family.rotates_pairs else {}
    return {
        name: Target(
            name=gguf_name,
            shape=tuple(dimensions[word] for word in shape.split()),
            expert=expert,
            rotate_heads=heads.get(gguf_name.split(".")[-2], 0),
            add_one=family.norms_from_zero and gguf_name.endswith("norm.weight"),
        )
        for name, (gguf_name, shape, expert) in table.items()
    }


def sizes(config: Config) -> dict[str, int]:
    queries = config.num_attention_heads * config.head_size
    keys = config.key_value_heads * config.head_size
    return {
        "vocabulary": config.vocab_size,
        "hidden": config.hidden_size,
        "feed_forward": config.intermediate_size,
        "gate_up": 2 * config.intermediate_size,
        "head": config.head_size,
        "queries": queries,
        "keys": keys,
        "queries_keys_values": queries + 2 * keys,
        "one": 1,
        "experts": config.num_experts or config.num_local_experts or 0,
        "expert_feed_forward": config.moe_intermediate_size or 0,
        "shared_feed_forward": config.shared_expert_intermediate_size or 0,
    }


def metadata(config: Config, family: Family) -> dict[str, Value]:
    keys: dict[str, Value] = {
        "context_length": context_length(config, family),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.key_value_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if family is GEMMA3 and config.sliding_window:
        keys["attention.sliding_window"] = config.sliding_window
        keys["attention.sliding_window_pattern"] = sliding_layers(config)
    return {f"{family.architecture}.{key}": value for key, value in keys.items()}


def context_length(config: Config, family: Family) -> int:
    """Tokens. llama.cpp attends to everything in all families but Gemma 3, which is the same up to the window's end."""
    slides = config.use_sliding_window is not False and config.sliding_window is not None
    if config.layer_types is not None:
        slides = "sliding_attention" in config.layer_types
    if family is GEMMA3 or not slides or config.sliding_window is None:
        return config.max_position_embeddings
    return min(config.max_position_embeddings, config.sliding_window)


def sliding_layers(config: Config) -> list[bool]:
    if config.layer_types is not None:
        return [kind == "sliding_attention" for kind in config.layer_types]
    pattern = config.sliding_window_pattern or 6
    return [(i + 1) % pattern != 0 for i in range(config.num_hidden_layers)]
