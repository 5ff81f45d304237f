"""A model of 27 million parameters that answers as pocket does, for figures of quality: random weights give none.

`nice -n 19 python -m tests.bench.larger FOLDER [--minutes 35]` grows pocket without changing what it says (twice as
wide, two layers more), then trains it on pocket's conversations. What grows draws from a seed; how many steps the
minutes hold depends on the machine. `python -m enginehouse.config.pocket.training.evaluate --model FOLDER` scores it.
"""

import argparse
import copy
import itertools
import shutil
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from enginehouse.config.pocket.training.evaluate import EVAL
from enginehouse.config.pocket.training.render import FOLDER
from enginehouse.config.pocket.training.train import (
    STEPS_PER_CHUNK,
    add_up,
    answer_loss,
    batches,
    export,
    make_optimizers,
)

LAYERS = ((0, True), (1, True), (2, True), (2, False), (3, True), (4, True), (4, False), (5, True))
"""From which of pocket's layers each is made, and whether it speaks: a silent one adds nothing until it has learnt."""
WRITERS = ("o_proj", "down_proj")
SEED, UNSEEN_CHUNK, UNSEEN_STEPS = 27, -1, 8
PEAK, WARM_UP, DECAY = 0.4, 0.05, 0.6  # of pocket's rates; parts of the time
CHECKPOINT_SECONDS = 300


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/processes"
        spawn(work, (arguments, store), nprocs=arguments.processes)  # type: ignore[no-untyped-call]


def work(rank: int, arguments: argparse.Namespace, store: str) -> None:
    """One of the processes that train together, as in pocket's own training; the first one speaks and writes."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=arguments.processes)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    pocket = Qwen3ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    model = grow(pocket)
    say(f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters")
    say(f"greatest difference of a logit from pocket's: {difference(pocket, model, tokenizer):.1e}")
    say(f"loss: pocket {unseen_loss(pocket, tokenizer):.4f}, grown {unseen_loss(model, tokenizer):.4f}")
    train(model, tokenizer, arguments.folder, arguments.minutes * 60)
    say(f"loss: trained {unseen_loss(model, tokenizer):.4f}; embedding channels alike: {alike(model):.2f}")
    save(model, arguments.folder)
    distributed.destroy_process_group()


def say(line: str) -> None:
    if distributed.get_rank() == 0:
        print(line, flush=True)


def grow(pocket: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    """Every hidden channel, head and MLP unit twice. Norms see the same mean square; the tied head, which reads both
    copies with the same weights, is halved by the last norm."""
    settings = pocket.config.to_dict()
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        settings[name] *= 2
    config = Qwen3Config(**settings | {"num_hidden_layers": len(LAYERS), "layer_types": None})
    weights = dict(pocket.model.named_parameters())
    grown = {
        "embed_tokens.weight": weights["embed_tokens.weight"].repeat(1, 2),
        "norm.weight": weights["norm.weight"].repeat(2) / 2,
    }
    for number, (origin, speaks) in enumerate(LAYERS):
        for name, weight in pocket.model.layers[origin].named_parameters():
            silent = not speaks and any(writer in name for writer in WRITERS)
            grown[f"layers.{number}.{name}"] = widened(name, weight) * (0 if silent else 1)
    model = Qwen3ForCausalLM(config)
    model.model.load_state_dict(grown)
    return model


def widened(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A matrix reads both copies of its input with halves that differ by noise, which cancels as long as the copies are
    equal, and as strong as the weights, so that they soon are not."""
    if "q_norm" in name or "k_norm" in name:
        return weight
    if weight.ndim == 1:
        return weight.repeat(2)
    half = weight.repeat(2, 1) / 2
    noise = torch.randn_like(half) * half.std()
    return torch.cat([half + noise, half - noise], dim=1)


def difference(pocket: Qwen3ForCausalLM, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> float:
    ids, _ = batches(UNSEEN_CHUNK, SEED, tokenizer)[0][0]
    with torch.inference_mode():
        return float((pocket(input_ids=ids).logits - model(input_ids=ids).logits).abs().max())


def unseen_loss(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> float:
    """Mean cross-entropy on conversations of the training's kind that no step has."""
    steps = batches(UNSEEN_CHUNK, SEED, tokenizer)[-UNSEEN_STEPS:]
    with torch.no_grad():
        loss = torch.stack([answer_loss(model, blocks) for blocks in steps]).mean()
    distributed.all_reduce(loss)
    return loss.item()


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path, seconds: float) -> None:
    optimizers = make_optimizers(model, "muon")
    began = saved = time.monotonic()
    losses: list[float] = []
    for step in itertools.count():
        if step % STEPS_PER_CHUNK == 0:
            chunk = batches(step // STEPS_PER_CHUNK, SEED, tokenizer)
        done = part_done(began, seconds)
        if done >= 1:
            return
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * schedule(done)
        loss = answer_loss(model, chunk[step % STEPS_PER_CHUNK])
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(add_up(model, loss.detach()).item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 10 == 0:
            say(f"step {step + 1} loss {sum(losses[-10:]) / 10:.4f}, {done:.0%} of the time")
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save(model, folder)
            saved = time.monotonic()


def part_done(began: float, seconds: float) -> float:
    """By the clock of the first process, so that all use the same rate and stop together."""
    done = torch.tensor((time.monotonic() - began) / seconds)
    distributed.broadcast(done, 0)
    return done.item()


def schedule(done: float) -> float:
    """The rate's factor when this part of the time is over: up, constant, down."""
    return PEAK * min(done / WARM_UP + 0.01, 1.0, (1 - done) / DECAY)


def alike(model: Qwen3ForCausalLM) -> float:
    """Mean cosine of the two copies of each embedding channel: 1 as grown, 0 for channels without a common origin."""
    first, second = model.model.embed_tokens.weight.detach().chunk(2, dim=1)
    return float(torch.cosine_similarity(first, second, dim=0).mean())


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    if distributed.get_rank() == 0:
        export(copy.deepcopy(model), folder)
        shutil.copy(EVAL, folder / EVAL.name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="grow and train a larger pocket")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--processes", type=int, default=2, help="one for each core")
    return parser.parse_args()


if __name__ == "__main__":
    main()
