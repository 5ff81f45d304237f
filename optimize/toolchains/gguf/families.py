"""What each architecture's checkpoint holds and what llama.cpp calls it."""

from typing import Any

import msgspec

EXPERT = ".*."  # in a name: of each expert


class Family(msgspec.Struct, frozen=True):
    """Architectures that share names, shapes and a graph in llama.cpp. Shapes are in the words of plan.sizes."""

    architecture: str  # llama.cpp's name
    layer: dict[str, tuple[str, str]]  # name in the checkpoint's layer -> (name in GGUF's block, shape)
    ropes: tuple[str, ...] = ()
    last: dict[str, tuple[str, str]] = {}  # behind the layers, besides the norm
    activation: str = "silu"
    defaults: dict[str, Any] = {}  # what this architecture's config.json may leave out
    rotates_pairs: bool = False  # llama.cpp turns neighbouring values, the checkpoint's rows are in halves
    norms_from_zero: bool = False  # the checkpoint stores weight - 1
    free_head_size: bool = True  # heads need not add up to the hidden size


NORMS = {
    "input_layernorm.weight": ("attn_norm.weight", "hidden"),
    "post_attention_layernorm.weight": ("ffn_norm.weight", "hidden"),
}
ATTENTION = {
    "self_attn.q_proj.weight": ("attn_q.weight", "queries hidden"),
    "self_attn.k_proj.weight": ("attn_k.weight", "keys hidden"),
    "self_attn.v_proj.weight": ("attn_v.weight", "keys hidden"),
    "self_attn.o_proj.weight": ("attn_output.weight", "hidden queries"),
}
HEAD_NORMS = {
    "self_attn.q_norm.weight": ("attn_q_norm.weight", "head"),
    "self_attn.k_norm.weight": ("attn_k_norm.weight", "head"),
}
BIASES = {
    "self_attn.q_proj.bias": ("attn_q.bias", "queries"),
    "self_attn.k_proj.bias": ("attn_k.bias", "keys"),
    "self_attn.v_proj.bias": ("attn_v.bias", "keys"),
}
FEED_FORWARD = {
    "mlp.gate_proj.weight": ("ffn_gate.weight", "feed_forward hidden"),
    "mlp.up_proj.weight": ("ffn_up.weight", "feed_forward hidden"),
    "mlp.down_proj.weight": ("ffn_down.weight", "hidden feed_forward"),
}
FUSED = {
    "self_attn.qkv_proj.weight": ("attn_qkv.weight", "queries_keys_values hidden"),
    "self_attn.o_proj.weight": ("attn_output.weight", "hidden queries"),
    "mlp.gate_up_proj.weight": ("ffn_up.weight", "gate_up hidden"),
    "mlp.down_proj.weight": ("ffn_down.weight", "hidden feed_forward"),
}
SANDWICH_NORMS = {
    "input_layernorm.weight": ("attn_norm.weight", "hidden"),
    "post_attention_layernorm.weight": ("post_attention_norm.weight", "hidden"),
    "pre_feedforward_layernorm.weight": ("ffn_norm.weight", "hidden"),
    "post_feedforward_layernorm.weight": ("post_ffw_norm.weight", "hidden"),
}
LLAMA = Family("llama", NORMS | ATTENTION | FEED_FORWARD, ("default", "linear", "llama3", "yarn"), rotates_pairs=True)
GEMMA3 = Family(
    "gemma3",
    SANDWICH_NORMS | ATTENTION | HEAD_NORMS | FEED_FORWARD,
    ("default", "linear"),
    activation="gelu_pytorch_tanh",
    norms_from_zero=True,
    # transformers' Gemma3TextConfig; google's own config.json files leave most of it out
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
)
FAMILIES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": Family(
        "qwen2",
        NORMS | ATTENTION | BIASES | FEED_FORWARD,
        ("default", "linear", "yarn"),
        defaults={"use_sliding_window": False},
        free_head_size=False,
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        NORMS | ATTENTION | HEAD_NORMS | FEED_FORWARD,
        ("default", "linear", "yarn"),
        defaults={"use_sliding_window": False, "head_dim": 128},
    ),
    "Phi3ForCausalLM": Family("phi3", NORMS | FUSED, ("default", "longrope"), free_head_size=False),
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3,
}
