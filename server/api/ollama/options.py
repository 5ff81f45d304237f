"""Ollama's `options`: how the next token is chosen, in its own words and with its own defaults."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from enginehouse.runtimes.contract import Constraint, Sampling
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.sampling import Penalty, Stop, Stops, Temperature, TopP
from enginehouse.server.body import LARGEST, Count, parse

# Accepted and without effect: how a model is loaded is for the config to say, and nothing of a prompt is thrown away.
IGNORED = {
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "numa",
    "use_mmap",
    "use_mlock",
    "low_vram",
    "f16_kv",
    "logits_all",
    "draft_num_predict",
    "mirostat_tau",
    "mirostat_eta",
}
# Accepted only with the value that asks for nothing; anything else is refused by name.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1, 1.0),
    "typical_p": (1, 1.0),
    "penalize_newline": (True,),
    "vocab_only": (False,),
    "embedding_only": (False,),
}


class Options(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    temperature: Temperature = 0.8
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=LARGEST)] = 40  # -1, 0: all
    top_p: TopP = 0.9
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = -1  # -1: another one each time
    num_predict: Annotated[int, msgspec.Meta(ge=-2, le=LARGEST)] = -1  # -1, -2: until the context is full
    stop: Stop | Stops = []
    repeat_penalty: Annotated[float, msgspec.Meta(ge=0.01, le=100)] = 1.0
    repeat_last_n: Annotated[int, msgspec.Meta(ge=-1, le=LARGEST)] = -1  # tokens it looks back: -1: all, 0: none
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    num_ctx: Count | None = None


def read(sent: msgspec.Raw) -> Options:
    """Raises Refused with the option's name."""
    try:
        return parse(bytes(sent) or b"{}", Options, IGNORED, NEUTRAL)
    except Refused as error:
        if error.param is None:
            raise Refused("'options' must be an object", "options", "invalid_value") from error
        message = error.message.replace(f"'{error.param}", f"'options.{error.param}", 1)
        raise Refused(message, f"options.{error.param}", error.code) from error


def sampling_of(options: Options, logprobs: int | None, constraint: Constraint | None) -> Sampling:
    penalty = options.repeat_penalty if options.repeat_last_n else 1.0
    if penalty != 1.0 and options.repeat_last_n > 0:
        raise Refused(
            "'options.repeat_last_n': 'repeat_penalty' counts the whole prompt and answer here; leave it out, or send "
            "-1 (all) or 0 (none)",
            "options.repeat_last_n",
            "invalid_value",
        )
    return Sampling(
        max_tokens=options.num_predict if options.num_predict >= 0 else None,
        temperature=options.temperature,
        top_k=max(0, options.top_k),
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed if options.seed != -1 else None,
        stop=(options.stop,) if isinstance(options.stop, str) else tuple(options.stop),
        repetition_penalty=penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logprobs=logprobs,
        constraint=constraint,
    )
