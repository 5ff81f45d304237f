"""From a Hugging Face checkpoint to a folder mlx_lm loads: the steps of mlx_lm.convert without its tokenizer, whose
files are kept as they are."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild, Report, copy_companions
from enginehouse.optimize.child_process import MESSAGE_LETTERS
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.toolchains.mlx.library import import_library, load_model

WIDENING = ("gate_proj", "up_proj", "gate_up_proj", "fc1")  # the first matrices of a feed-forward network
CHECKED_TOKENS = 2  # one from nothing, one from the cache; a processor takes seconds for each
NAMED_LAYERS = 3


class Plan(msgspec.Struct, frozen=True):
    """What becomes of the weights."""

    bits: int = 0  # 0: no quantization
    group: int = 64
    mixture: str | None = None  # mlx_lm's name for a choice of bits layer by layer
    others: int = 0  # bits of all but the first matrices of a feed-forward network; 0: as of those
    dtype: str | None = None  # of what is not quantized; None: as the checkpoint has it, but never wider than 16 bits


def convert(checkpoint: Path, plan: Plan, folder: Path, report: Report) -> None:
    """Writes the weights, config.json and the companions into the empty folder. Raises CannotBuild."""
    report("convert", 0.0)
    import_library()
    import mlx.core as mx
    from mlx_lm.utils import save_config, save_model

    mx.disable_compile()  # on a processor, kernels would be compiled by g++ for a run that lasts four tokens
    try:
        model = load_model(checkpoint)
    except (ValueError, TypeError, KeyError, RuntimeError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())[:MESSAGE_LETTERS]
        raise CannotBuild(f"mlx_lm cannot read the checkpoint: {reason}") from error
    cast(model, plan.dtype)
    config = read_json(checkpoint / "config.json")
    if plan.bits:
        config = quantize(model, config, plan)
    report("quantize" if plan.bits else "convert", 0.0)
    copy_companions(checkpoint, folder)
    save_model(folder, model, donate_model=True)  # here the weights are read, computed and written, a file at a time
    save_config(config, folder / "config.json")  # over the checkpoint's, for it says how the weights are packed
    report("quantize" if plan.bits else "convert", 1.0)
    del model
    mx.clear_cache()
    check(folder, report)


def cast(model: Any, dtype: str | None) -> None:
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    keep: Callable[[str], bool] = getattr(model, "cast_predicate", lambda path: True)  # what mlx_lm leaves in 32 bits

    def change(path: str, weight: Any) -> Any:
        if not mx.issubdtype(weight.dtype, mx.floating) or not keep(path):
            return weight
        if dtype is None:
            return weight.astype(mx.bfloat16) if weight.dtype == mx.float32 else weight
        return weight.astype(getattr(mx, dtype))

    model.update(tree_map_with_path(change, model.parameters()))


def quantize(model: Any, config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The config that says how the weights are packed. mlx_lm leaves out what the group does not divide, and says
    nothing: we say it, and refuse where nothing is left."""
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import quantize_model

    able = {path: module for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    left = sorted(path for path, module in able.items() if module.weight.shape[-1] % plan.group)
    if len(left) == len(able):
        width = next(iter(able.values())).weight.shape[-1]
        raise CannotBuild(f"no layer can be quantized in groups of {plan.group}: they are {width} wide")
    if left:
        named = ", ".join(left[:NAMED_LAYERS]) + (" ..." if len(left) > NAMED_LAYERS else "")
        why = f"groups of {plan.group} do not divide their width"
        print(f"{len(left)} of {len(able)} layers stay in 16 bits, {why}: {named}", file=sys.stderr, flush=True)
    try:
        choose: Callable[..., Any] | None
        choose = mixed_quant_predicate_builder(plan.mixture, model, plan.group) if plan.mixture else None
    except ValueError as error:
        raise CannotBuild(f"'{plan.mixture}' does not fit this architecture: {error}") from error
    if plan.others:
        choose = feed_forward_narrower(plan)
    _, changed = quantize_model(model, copy.deepcopy(config), plan.group, plan.bits, quant_predicate=choose)
    return dict(changed)


def feed_forward_narrower(plan: Plan) -> Callable[[str, Any], dict[str, Any]]:
    """mlx_lm's question: how is the layer at this path packed?"""

    def choose(path: str, module: Any) -> dict[str, Any]:
        widening = any(part in WIDENING for part in path.split("."))
        return {"group_size": plan.group, "bits": plan.bits if widening else plan.others, "mode": "affine"}

    return choose


def check(folder: Path, report: Report) -> None:
    """Loads what was written and runs it for a few tokens."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    report("check", 0.0)
    try:
        model = load_model(folder)
        cache = make_prompt_cache(model)
        tokens = mx.array([[1]])
        for at in range(CHECKED_TOKENS):
            logits = model(tokens, cache=cache)[:, -1, :].astype(mx.float32)
            if not mx.isfinite(logits).all().item():
                raise CannotBuild("what was built does not compute numbers; its weights overflow in this precision")
            tokens = logits.argmax(-1, keepdims=True)
            report("check", (at + 1) / CHECKED_TOKENS)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CannotBuild(f"mlx_lm does not load what was built: {error}") from error
