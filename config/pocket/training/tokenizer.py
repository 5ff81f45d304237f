"""Builds the pocket model's tokenizer: byte-level BPE in Qwen2's manner, 4096 tokens."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from enginehouse.config.pocket.training.data import sample
from enginehouse.config.pocket.training.render import FOLDER, answer_text, prompt_text

VOCABULARY = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def build() -> None:
    """Trains the tokenizer and writes tokenizer.json and tokenizer_config.json beside this file."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(MARKERS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    bpe.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(FOLDER)


def _corpus() -> Iterator[str]:
    """Conversations without people's names, so that names split in short pieces that many share; then wider text."""
    rng = Random("tokenizer")
    for _ in range(8000):
        conversation = sample(rng)
        text = prompt_text(conversation.messages[:-1], conversation.tools, conversation.thinking)
        text += answer_text(conversation.messages[-1])
        for name in sorted(conversation.names, key=len, reverse=True):
            text = text.replace(name, "")
        for marker in (*SPECIAL, *MARKERS):
            text = text.replace(marker, "\n")
        yield text
    library = Path(sysconfig.get_path("stdlib"))
    for name in (
        "LICENSE.txt",
        "this.py",
        "json/decoder.py",
        "argparse.py",
        "asyncio/base_events.py",
        "textwrap.py",
    ):
        if (library / name).exists():
            yield (library / name).read_text(encoding="utf-8")
    for name in ("typing.py", "pathlib.py", "statistics.py", "random.py", "datetime.py", "email/message.py"):
        if (library / name).exists():
            yield (library / name).read_text(encoding="utf-8")
    yield Path(__file__).with_name("wider.txt").read_text(encoding="utf-8")
