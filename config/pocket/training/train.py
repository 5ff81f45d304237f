"""Trains the pocket model: `python -m enginehouse.config.pocket.training.train --steps 4000 --out FOLDER`.

Warm-up, constant rate, then a linear decay over the last part (WSD): a run can be cut short by resuming a checkpoint
with fewer `--steps`, and lengthened by resuming one from before the decay with more. Every chunk of steps draws its
conversations from a generator seeded with its number, so a run repeats.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from random import Random

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from enginehouse.config.pocket.training import data
from enginehouse.config.pocket.training.render import FOLDER, answer_text, prompt_text

TOKENS_PER_BLOCK, BLOCKS_PER_STEP, STEPS_PER_CHUNK = 1536, 4, 25
ROW_LENGTHS = (48, 64, 96, 128, 192, 256, 384, 512)
WARM_UP_STEPS = 100
MUON_RATE, ADAMW_RATE = 3e-3, 3e-3
IGNORED = -100
HF_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
Row = tuple[list[int], list[int]]
Block = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    arguments = _arguments()
    if arguments.tokenizer:
        from enginehouse.config.pocket.training import tokenizer

        tokenizer.build()
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/processes"
        spawn(work, (arguments, store), nprocs=arguments.processes)  # type: ignore[no-untyped-call]


def work(rank: int, arguments: argparse.Namespace, store: str) -> None:
    """One of the processes that train together, each on one core with a part of every step's blocks."""
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=arguments.processes)
    tokens = AutoTokenizer.from_pretrained(FOLDER)
    model = Qwen3ForCausalLM(shape(tokens))
    train(model, tokens, arguments)
    if rank == 0:
        export(model, arguments.out)
    distributed.destroy_process_group()


def shape(tokenizer: PreTrainedTokenizerBase) -> Qwen3Config:
    """Hidden size 256 keeps the blocks of every quantization in use (K-quants 256, the others 32 to 128) applicable."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        bos_token_id=None,
    )


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace) -> None:
    optimizers = make_optimizers(model, arguments.optimizer)
    start = _resume(model, optimizers, arguments.resume)
    model.train()
    began, seen, losses = time.time(), 0, []
    for step in range(start, arguments.steps):
        if step % STEPS_PER_CHUNK == 0:
            chunk = batches(step // STEPS_PER_CHUNK, arguments.seed, tokenizer)
        blocks = chunk[step % STEPS_PER_CHUNK]
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * schedule(step, arguments.steps, arguments.decay)
        loss = answer_loss(model, blocks)
        loss.backward()  # type: ignore[no-untyped-call]
        loss = add_up(model, loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += sum(ids.numel() for ids, _ in blocks)
        losses.append(loss.item())
        if distributed.get_rank() > 0:
            continue
        if (step + 1) % 25 == 0:
            mean = sum(losses[-25:]) / len(losses[-25:])
            seconds = time.time() - began
            print(
                f"step {step + 1} loss {mean:.4f} {seen / seconds:.0f} tokens/s {seconds / 60:.1f} min",
                flush=True,
            )
        if (step + 1) % 250 == 0 and arguments.checkpoints:
            _checkpoint(model, optimizers, step + 1, arguments.checkpoints)


def answer_loss(model: Qwen3ForCausalLM, blocks: list[Block]) -> torch.Tensor:
    """This process's part of the mean cross-entropy over the answers' tokens of all blocks.

    Rows are padded at the end, so causal attention needs no mask.
    """
    total = sum(int((targets != IGNORED).sum()) for _, targets in blocks)
    hidden, wanted = [], []
    with torch.autocast("cpu", torch.bfloat16):
        for ids, targets in blocks[distributed.get_rank() :: distributed.get_world_size()]:
            states = model.model(input_ids=ids, use_cache=False).last_hidden_state
            hidden.append(states[targets != IGNORED])
            wanted.append(targets[targets != IGNORED])
        states, targets = torch.cat(hidden), torch.cat(wanted)
        padding = -len(targets) % 512
        logits = model.lm_head(torch.nn.functional.pad(states, (0, 0, 0, padding)))
    targets = torch.nn.functional.pad(targets, (0, padding), value=IGNORED)
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / total


def add_up(model: Qwen3ForCausalLM, loss: torch.Tensor) -> torch.Tensor:
    """Sums loss and gradients over the processes."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [loss.reshape(1)])
    distributed.all_reduce(flat)
    sums: tuple[torch.Tensor, ...] = torch.split(flat, [gradient.numel() for gradient in gradients] + [1])
    for gradient, summed in zip(gradients, sums, strict=False):
        gradient.copy_(summed.view_as(gradient))
    return sums[-1]


def schedule(step: int, steps: int, decay: float) -> float:
    """The rate's factor: up over the first steps, constant, down to almost nothing over the last `decay` of them."""
    return min((step + 1) / WARM_UP_STEPS, 1.0, (steps - step) / (steps * decay))


def batches(chunk: int, seed: int, tokenizer: PreTrainedTokenizerBase) -> list[list[Block]]:
    """The blocks of each step of a chunk: conversations of like length, one a row, padded at the end.

    One step in a chunk has long rows of many conversations instead, so that far positions are trained as well. Every
    block has the same number of tokens, because oneDNN compiles a kernel for each new shape of a matrix product.
    """
    rng = Random(f"{seed}/{chunk}")
    blocks: list[Block] = []
    filling: dict[int, list[Row]] = {length: [] for length in ROW_LENGTHS}
    while len(blocks) < (STEPS_PER_CHUNK - 1) * BLOCKS_PER_STEP:
        row = _encoded(rng, tokenizer)
        length = next((length for length in ROW_LENGTHS if len(row[0]) <= length), None)
        if length is None:
            continue
        filling[length].append(row)
        if len(filling[length]) * length == TOKENS_PER_BLOCK:
            blocks.append(_block(filling[length], length, tokenizer))
            filling[length] = []
    rng.shuffle(blocks)
    steps = [blocks[at : at + BLOCKS_PER_STEP] for at in range(0, len(blocks), BLOCKS_PER_STEP)]
    return [*steps, [_long_block(rng, tokenizer) for _ in range(BLOCKS_PER_STEP)]]


def _long_block(rng: Random, tokenizer: PreTrainedTokenizerBase) -> Block:
    """One row without borders between its conversations."""
    ids: list[int] = []
    targets: list[int] = []
    while len(ids) < TOKENS_PER_BLOCK:
        row = _encoded(rng, tokenizer)
        ids += row[0]
        targets += row[1]
    return _block([(ids[:TOKENS_PER_BLOCK], targets[:TOKENS_PER_BLOCK])], TOKENS_PER_BLOCK, tokenizer)


def _block(rows: list[Row], length: int, tokenizer: PreTrainedTokenizerBase) -> Block:
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows])
    targets = torch.tensor([targets[1:] + [IGNORED] * (length - len(targets) + 1) for _, targets in rows])
    return ids, targets


def _encoded(rng: Random, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Ids of a whole conversation and its targets: the last answer and its end, nothing else."""
    conversation = data.sample(rng)
    prompt = prompt_text(conversation.messages[:-1], conversation.tools, conversation.thinking)
    encode = tokenizer.backend_tokenizer.encode
    question = encode(prompt).ids
    answer = encode(answer_text(conversation.messages[-1]) + "<|im_end|>").ids
    return question + answer, [IGNORED] * len(question) + answer


Optimizers = list[tuple[torch.optim.Optimizer, float]]


def make_optimizers(model: Qwen3ForCausalLM, kind: str) -> Optimizers:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms; or AdamW for all."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    if kind == "adamw":
        return [(torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05), ADAMW_RATE)]
    return [
        (torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"), MUON_RATE),
        (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0), ADAMW_RATE),
    ]


def _resume(model: Qwen3ForCausalLM, optimizers: Optimizers, path: Path | None) -> int:
    if path is None:
        return 0
    if path.is_dir():
        model.load_state_dict(Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict())
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def _checkpoint(model: Qwen3ForCausalLM, optimizers: Optimizers, step: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    states = [optimizer.state_dict() for optimizer, _ in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "step": step}, folder / f"{step}.pt")


def export(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Writes a complete Hugging Face folder with bf16 weights."""
    model = model.to(torch.bfloat16)
    ends = [model.config.eos_token_id, model.config.pad_token_id]
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=model.config.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    for name in HF_FILES:
        if folder.resolve() != FOLDER.resolve():
            shutil.copy(FOLDER / name, folder / name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train the pocket model")
    parser.add_argument("--steps", type=int, default=3100)
    parser.add_argument("--decay", type=float, default=0.3, help="part of the steps over which the rate falls")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--checkpoints", type=Path, help="folder for a checkpoint every 250 steps")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from, or a folder whose weights to begin with")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--tokenizer", action="store_true", help="rebuild the tokenizer first")
    parser.add_argument("--processes", type=int, default=2, help="one for each core; part of what a seed repeats")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
