"""A checkpoint of Qwen3-0.6B's exact shape with random weights, every token id of which decodes to text.

For speed alone: what it says is noise. `python -m tests.bench.shape FOLDER` makes it, 1.2 GB, with numpy only.
"""

import itertools
import json
import struct
import sys
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, MLP, VOCABULARY = 1024, 28, 16, 8, 128, 3072, 151_936
LETTERS = "abcdefghijklmnopqrstuvwxyz"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": VOCABULARY - 1,
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def make(folder: Path) -> Path:
    """The folder, made if it is not there yet."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer(folder)
        write_weights(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def write_tokenizer(folder: Path) -> None:
    """The 256 bytes, then words of two, three and four letters, each a merge of a shorter one and a letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("".join(letters) for size in (2, 3, 4) for letters in itertools.product(LETTERS, repeat=size))
    merged = list(itertools.islice(words, VOCABULARY - len(alphabet) - 1))
    vocabulary = {token: id for id, token in enumerate([*alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [(word[:-1], word[-1]) for word in merged]))
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
        "self_attn.q_norm": (HEAD,),
        "self_attn.k_norm": (HEAD,),
        "mlp.gate_proj": (MLP, HIDDEN),
        "mlp.up_proj": (MLP, HIDDEN),
        "mlp.down_proj": (HIDDEN, MLP),
    }
    layers = {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()}
    return {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), **layers, "model.norm.weight": (HIDDEN,)}


def write_weights(file: Path) -> None:
    """Normal with deviation 0.02, norms 1; bf16 is the upper half of a 32-bit float."""
    header, offset = {}, 0
    for name, shape in shapes().items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes().values():
            values = random.standard_normal(shape, np.float32) * 0.02 if len(shape) > 1 else np.ones(shape, np.float32)
            out.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


if __name__ == "__main__":
    make(Path(sys.argv[1]))
