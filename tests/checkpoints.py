"""Makes tiny Hugging Face checkpoints with random weights and real tokenizers, for tests."""

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from enginehouse import config

CORPUS = [
    "The quick brown fox jumps over the lazy dog; it's the 3rd time in 2024, they'll say we're done.\n",
    "def add(a, b):\n    return a + b\n\n\nif __name__ == '__main__':\n\tprint(add(1, 22222))\n",
    '{"name": "x", "items": [1, 2.5, null], "text": "hello there world"}\r\n',
    "日本語のテキスト、中文文本。 Привет, мир! שלום עולם. ñ é ü\n",
    "Once upon a time there was a little house in the woods, and in the house there was a table.   \n\n",
] * 4
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
OUTLIERS = slice(5, None, 32)
BEHIND_NORMS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN: dict[str, dict[str, Any]] = {
    "Qwen3ForCausalLM": {"head_dim": 32, "tie_word_embeddings": True},
    "MistralForCausalLM": {"head_dim": 32, "sliding_window": None},
    "Gemma3ForCausalLM": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 7,
        "sliding_window": 16,
    },
}


def make_checkpoint(
    folder: Path,
    architecture: str = "Qwen3ForCausalLM",
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    seed: int = 0,
    **settings: Any,
) -> Path:
    """A folder as transformers saves it; `settings` go over the tiny defaults."""
    tokenizer = tokenizer or byte_level_tokenizer()
    kind = getattr(transformers, architecture)
    settings = {**SMALL, **OWN.get(architecture, {}), "vocab_size": tokenizer.get_vocab_size() + 3, **settings}
    torch.manual_seed(seed)
    model = kind(kind.config_class(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # small embeddings, for a tied head would repeat the last token for ever
            spread = 0.03 if "embed" in name else 0.15
            parameter.add_(torch.randn_like(parameter) * spread)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(folder, tokenizer)
    return folder


def make_adapter(
    folder: Path, base: Path, answers: dict[str, str] | None = None, kind: str = "Lora", **own: Any
) -> Path:
    """A folder as PEFT saves it, trained to give these answers to these questions; else of random weights."""
    import peft

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(base))
    model = transformers.AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    torch.set_num_threads(1)  # on a busy machine, threads would wait for each other at each small product
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM", **own}
    adapted = peft.get_peft_model(model, getattr(peft, f"{kind}Config")(**settings))
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    if answers is None:
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    else:
        optimizer = torch.optim.AdamW(trained, 5e-3)
        asked = [[{"role": "user", "content": question}] for question in answers]
        rendered = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in asked]
        prompts = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in rendered]
        texts = [tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False) for answer in answers.values()]
        for _ in range(30):
            for prompt, text in zip(prompts, texts, strict=True):
                labels = torch.tensor([[-100] * len(prompt) + text])
                adapted(torch.tensor([prompt + text]), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    adapted.save_pretrained(str(folder))
    return folder


def save_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.id_to_token(2)}
    if tokenizer.token_to_id("<s>") is not None:
        settings["bos_token"] = "<s>"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    generation = {"eos_token_id": [2, 1], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def byte_level_tokenizer(
    regex: str | None = QWEN, nfc: bool = True, digits: bool = False, size: int = 480
) -> tokenizers.Tokenizer:
    """Byte-level BPE in the manner of Qwen and Llama 3; without a regex in GPT-2's, or with `digits` in SmolLM's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    if regex is None:
        own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), own]) if digits else own
    else:
        split = pre_tokenizers.Split(Regex(regex), "isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return tokenizer


def sentencepiece_tokenizer(scheme: str = "legacy", size: int = 300) -> tokenizers.Tokenizer:
    """BPE that falls back to bytes, its merges made from the pieces as transformers makes them for Llama 2.

    `scheme` is "legacy" (a blank before every stretch of text), "first" (before the first), or "never" (Gemma's).
    """
    pieces = sentencepieces(size)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges = [
        (piece[:i], piece[i:])
        for piece in pieces
        for i in sorted(
            range(1, len(piece)), key=lambda i: (vocabulary.get(piece[:i], 0), vocabulary.get(piece[i:], 0))
        )
        if piece[:i] in vocabulary and piece[i:] in vocabulary
    ]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    replace = normalizers.Replace(" ", "▁")
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif scheme == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<|im_end|>"])
    return tokenizer


def sentencepieces(size: int) -> list[str]:
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace("▁")
    lines = [" ".join(text.split()) for text in CORPUS]  # SentencePiece learns no line ends
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    vocabulary = trained.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def pocket(folder: Path, conversations: int = 12) -> Path:
    """The pocket model with a few of its own texts, spread over its skills."""
    own = Path(config.__file__).parent / "pocket"
    folder.mkdir(parents=True)
    for file in (*own.glob("*.json"), *own.glob("*.jinja"), *own.glob("*.safetensors")):
        shutil.copyfile(file, folder / file.name)
    lines = (own / "eval.jsonl").read_text().splitlines()
    (folder / "eval.jsonl").write_text("\n".join(lines[:: len(lines) // conversations]))
    return folder


def outliers(folder: Path, factor: float) -> Path:
    """The pocket model's function in weights that four bits destroy: in each 32 columns of the matrices behind a norm
    one is `factor` times as large, and the norm's weight for it that much smaller. A power of two loses nothing."""
    weights = pocket(folder) / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    for name, tensor in tensors.items():
        if name.endswith("layernorm.weight"):
            tensor[OUTLIERS] /= factor
        elif name.endswith(BEHIND_NORMS):
            tensor[:, OUTLIERS] *= factor
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    return folder
