"""The part of config.json a conversion depends on."""

from typing import Annotated, Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild

Positive = Annotated[int, msgspec.Meta(gt=0)]
Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]  # of a GGUF key


class TokenIds(msgspec.Struct, frozen=True):
    """What a vocabulary depends on, of models we know nothing else of."""

    vocab_size: Positive
    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


class Config(msgspec.Struct, frozen=True):
    """Read from config.json over the family's defaults; what has no default here must be there."""

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    vocab_size: Positive
    max_position_embeddings: Positive
    rms_norm_eps: float
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None  # Gemma's word for the same
    tie_word_embeddings: bool | None = None
    num_experts: Positive | None = None
    num_local_experts: Positive | None = None  # Mixtral's word for the same
    moe_intermediate_size: Positive | None = None
    shared_expert_intermediate_size: Positive | None = None
    sliding_window: Positive | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None
    sliding_window_pattern: Positive | None = None
    use_bidirectional_attention: bool | None = None
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    rope_theta: float | None = None
    rope_local_base_freq: float | None = None
    partial_rotary_factor: float | None = None
    original_max_position_embeddings: int | None = None
    rope_scaling: dict[str, Any] | None = None  # until transformers 4
    rope_parameters: dict[str, Any] | None = None  # since transformers 5; by layer type where these differ
    bos_token_id: int | list[int] | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads


def decode_config(raw: dict[str, Any], defaults: dict[str, Any]) -> Config:
    """The text model's part of a config.json."""
    try:
        return msgspec.convert({**defaults, **raw, **raw.get("text_config", {})}, Config)
    except msgspec.ValidationError as error:
        raise CannotBuild(f"config.json does not describe a known model: {error}") from error
