"""The architectures of .gguf files that are read, and what their headers say in the words of config.json."""

from typing import Any

import msgspec

# Of every one: after the architecture's name in the header -> in config.json.
NUMBERS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
OPTIONAL = {"attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim"}
RMS_NORM = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
LAYER_NORM = {"attention.layer_norm_epsilon": "layer_norm_eps"}
WINDOW = {"attention.sliding_window": "sliding_window"}
CAPPING = {"final_logit_softcapping": "final_logit_softcapping"}
EXPERTS_USED = {"expert_used_count": "num_experts_per_tok"}
QWEN_EXPERTS = EXPERTS_USED | {
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
}
SCALE = {"logit_scale": "logit_scale"}
FLOATS = {
    "rms_norm_eps", "layer_norm_eps", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale",
    "logits_scaling", "attention_multiplier", "embedding_multiplier", "residual_multiplier",
    "llama_4_scaling_beta",
}  # fmt: skip
GELU = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
NO_WINDOW = {"use_sliding_window": False}
EVERY_LAYER = NO_WINDOW | {"decoder_sparse_step": 1, "mlp_only_layers": []}  # is one of experts
TEMPERATURE = "attention.temperature_scale"


class Architecture(msgspec.Struct, frozen=True):
    name: str  # llama.cpp's
    model: str  # transformers' class
    model_type: str
    numbers: dict[str, str] = {}  # as NUMBERS, besides them
    optional: dict[str, str] = {}
    where: str = ""  # it is this one if the header says this
    always: dict[str, Any] = {}  # words that no header says
    flags: dict[str, str] = {}  # in config.json -> the tensor that tells
    partial: bool = False  # may turn a part of each head
    full_every: int = 0  # so many layers one looks back at all tokens, the others at a window
    own_rope: bool = False  # those others are turned in their own way
    tuned_rope: bool = False  # is turned only if the header does not deny "rope.scaling.finetuned"
    by_width: int = 0  # a model of so many layers scales queries by hidden size / heads, all others by head_dim
    unread: tuple[str, ...] = ()  # keys by which llama.cpp does nothing


ARCHITECTURES = (
    Architecture("llama", "MixtralForCausalLM", "mixtral",
                 RMS_NORM | EXPERTS_USED | {"expert_count": "num_local_experts"}, where="expert_count"),
    Architecture("llama", "LlamaForCausalLM", "llama", RMS_NORM),
    Architecture("mistral3", "Ministral3ForCausalLM", "ministral3",
                 RMS_NORM | {TEMPERATURE: "llama_4_scaling_beta"}, where=TEMPERATURE),
    Architecture("mistral3", "MistralForCausalLM", "mistral", RMS_NORM, always={"sliding_window": None}),
    Architecture("qwen2", "Qwen2ForCausalLM", "qwen2", RMS_NORM),
    Architecture("qwen3", "Qwen3ForCausalLM", "qwen3", RMS_NORM),
    Architecture("qwen2moe", "Qwen2MoeForCausalLM", "qwen2_moe",
                 RMS_NORM | QWEN_EXPERTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
                 always={**EVERY_LAYER, "norm_topk_prob": False}),
    Architecture("qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe", RMS_NORM | QWEN_EXPERTS,
                 always={**EVERY_LAYER, "norm_topk_prob": True}),
    Architecture("gemma", "GemmaForCausalLM", "gemma", RMS_NORM, always=GELU),
    Architecture("gemma2", "Gemma2ForCausalLM", "gemma2",
                 RMS_NORM | WINDOW | CAPPING | {"attn_logit_softcapping": "attn_logit_softcapping"},
                 always=GELU, full_every=2, by_width=46),
    Architecture("gemma3", "Gemma3ForCausalLM", "gemma3_text", RMS_NORM | WINDOW, always=GELU, full_every=6,
                 own_rope=True, by_width=62),
    Architecture("phi3", "Phi3ForCausalLM", "phi3", RMS_NORM, partial=True,
                 optional=WINDOW | {"rope.scaling.original_context_length": "original_max_position_embeddings"}),
    Architecture("granite", "GraniteForCausalLM", "granite",
                 RMS_NORM | {"attention.scale": "attention_multiplier", "embedding_scale": "embedding_multiplier",
                             "residual_scale": "residual_multiplier", "logit_scale": "logits_scaling"},
                 always={"attention_bias": False, "mlp_bias": False}, tuned_rope=True),
    Architecture("olmo2", "Olmo2ForCausalLM", "olmo2", RMS_NORM),
    Architecture("smollm3", "SmolLM3ForCausalLM", "smollm3", RMS_NORM,
                 always={**NO_WINDOW, "no_rope_layer_interval": 4}),
    Architecture("stablelm", "StableLmForCausalLM", "stablelm", LAYER_NORM, partial=True,
                 flags={"use_qkv_bias": "blk.0.attn_q.bias"}, always={"use_parallel_residual": False},
                 unread=("use_parallel_residual",)),
    Architecture("command-r", "CohereForCausalLM", "cohere", LAYER_NORM | SCALE, always={"use_qk_norm": False},
                 unread=tuple(RMS_NORM)),
    Architecture("cohere2", "Cohere2ForCausalLM", "cohere2", LAYER_NORM | SCALE | WINDOW, full_every=4,
                 unread=tuple(RMS_NORM)),
    Architecture("glm4", "Glm4ForCausalLM", "glm4", RMS_NORM, partial=True,
                 flags={"attention_bias": "blk.0.attn_q.bias"}),
    Architecture("ernie4_5", "Ernie4_5ForCausalLM", "ernie4_5", RMS_NORM, always={"use_bias": False}),
    Architecture("exaone4", "Exaone4ForCausalLM", "exaone4", RMS_NORM,
                 always={"sliding_window": None, "sliding_window_pattern": None}, full_every=1),
)  # fmt: skip


def says_nothing(value: Any) -> bool:
    return not isinstance(value, bool) and value in (0, "none")
