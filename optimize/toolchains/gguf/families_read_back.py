"""What the checkpoints hold of architectures that are only read: llama.cpp's own converter writes these."""

from typing import Any

import msgspec

from enginehouse.optimize.toolchains.gguf.families import (
    ATTENTION,
    BIASES,
    FAMILIES,
    FEED_FORWARD,
    HEAD_NORMS,
    LLAMA,
    NORMS,
    SANDWICH_NORMS,
    Family,
)

EXPERTS = {
    "mlp.gate.weight": ("ffn_gate_inp.weight", "experts hidden"),
    "mlp.experts.*.gate_proj.weight": ("ffn_gate_exps.weight", "expert_feed_forward hidden"),
    "mlp.experts.*.up_proj.weight": ("ffn_up_exps.weight", "expert_feed_forward hidden"),
    "mlp.experts.*.down_proj.weight": ("ffn_down_exps.weight", "hidden expert_feed_forward"),
}
SHARED_EXPERT = {
    "mlp.shared_expert.gate_proj.weight": ("ffn_gate_shexp.weight", "shared_feed_forward hidden"),
    "mlp.shared_expert.up_proj.weight": ("ffn_up_shexp.weight", "shared_feed_forward hidden"),
    "mlp.shared_expert.down_proj.weight": ("ffn_down_shexp.weight", "hidden shared_feed_forward"),
    "mlp.shared_expert_gate.weight": ("ffn_gate_inp_shexp.weight", "one hidden"),
}
MIXTRAL_EXPERTS = {
    "block_sparse_moe.gate.weight": ("ffn_gate_inp.weight", "experts hidden"),
    "block_sparse_moe.experts.*.w1.weight": ("ffn_gate_exps.weight", "feed_forward hidden"),
    "block_sparse_moe.experts.*.w2.weight": ("ffn_down_exps.weight", "hidden feed_forward"),
    "block_sparse_moe.experts.*.w3.weight": ("ffn_up_exps.weight", "feed_forward hidden"),
}
WHOLE_NORMS = {
    "self_attn.q_norm.weight": ("attn_q_norm.weight", "queries"),
    "self_attn.k_norm.weight": ("attn_k_norm.weight", "keys"),
}
NORMS_AFTER = {
    "post_attention_layernorm.weight": ("post_attention_norm.weight", "hidden"),
    "post_feedforward_layernorm.weight": ("post_ffw_norm.weight", "hidden"),
}
NORM_BIASES = {
    "input_layernorm.bias": ("attn_norm.bias", "hidden"),
    "post_attention_layernorm.bias": ("ffn_norm.bias", "hidden"),
}
GLM4 = {
    "input_layernorm.weight": ("attn_norm.weight", "hidden"),
    "post_self_attn_layernorm.weight": ("post_attention_norm.weight", "hidden"),
    "post_attention_layernorm.weight": ("ffn_norm.weight", "hidden"),
    "post_mlp_layernorm.weight": ("post_ffw_norm.weight", "hidden"),
    "mlp.gate_up_proj.weight": ("ffn_up.weight", "gate_up hidden"),
    "mlp.down_proj.weight": ("ffn_down.weight", "hidden feed_forward"),
}
ONE_NORM = {"input_layernorm.weight": ("attn_norm.weight", "hidden")}
LAYER_NORMS = {"rms_norm_eps": 0.0}  # they have 'layer_norm_eps', on which no shape depends
COHERE = Family("command-r", ONE_NORM | ATTENTION | FEED_FORWARD, defaults=LAYER_NORMS)

READABLE = FAMILIES | {
    "MixtralForCausalLM": Family("llama", NORMS | ATTENTION | MIXTRAL_EXPERTS, rotates_pairs=True),
    "Ministral3ForCausalLM": LLAMA,
    "GraniteForCausalLM": LLAMA,
    "SmolLM3ForCausalLM": LLAMA,
    "Qwen2MoeForCausalLM": Family(
        "qwen2moe", NORMS | ATTENTION | BIASES | EXPERTS | SHARED_EXPERT, free_head_size=False
    ),
    "Qwen3MoeForCausalLM": Family("qwen3moe", NORMS | ATTENTION | HEAD_NORMS | EXPERTS),
    "GemmaForCausalLM": Family("gemma", NORMS | ATTENTION | FEED_FORWARD, norms_from_zero=True),
    "Gemma2ForCausalLM": Family("gemma2", SANDWICH_NORMS | ATTENTION | FEED_FORWARD, norms_from_zero=True),
    "Olmo2ForCausalLM": Family("olmo2", NORMS_AFTER | ATTENTION | WHOLE_NORMS | FEED_FORWARD),
    "StableLmForCausalLM": Family(
        "stablelm",
        NORMS | NORM_BIASES | ATTENTION | FEED_FORWARD,
        last={"model.norm.bias": ("output_norm.bias", "hidden")},
        defaults=LAYER_NORMS,
        free_head_size=False,
    ),
    "CohereForCausalLM": COHERE,
    "Cohere2ForCausalLM": COHERE,
    "Glm4ForCausalLM": Family("glm4", GLM4 | ATTENTION),
    "Ernie4_5ForCausalLM": Family("ernie4_5", NORMS | ATTENTION | FEED_FORWARD),
    "Exaone4ForCausalLM": Family("exaone4", NORMS_AFTER | ATTENTION | HEAD_NORMS | FEED_FORWARD),
}
FLAGS = {"use_qkv_bias": BIASES, "attention_bias": BIASES}  # what a checkpoint holds besides, if its config says so


def family_of(raw: dict[str, Any]) -> Family:
    """`raw`: a config.json."""
    family = READABLE[raw["architectures"][0]]
    told = [entries for flag, entries in FLAGS.items() if raw.get(flag)]
    return msgspec.structs.replace(
        family, layer={name: to for part in (family.layer, *told) for name, to in part.items()}
    )
