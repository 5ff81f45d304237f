"""The models of the config as Ollama describes them: under its names, with what is known without loading any."""

import asyncio
import datetime
import hashlib
import re
from collections.abc import Sequence

import msgspec

from enginehouse.config.schema import Model
from enginehouse.optimize.artifact import Source
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import Refused, UnknownModel
from enginehouse.runtimes.pool.explanation import Loaded, OnDisk
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.runtimes.tool_calls.parsers import parser_of
from enginehouse.server.api.ollama.options import Options
from enginehouse.server.api.ollama.render import Fields, time_of

LATEST = ":latest"
FORMATS = {"checkpoint": "safetensors"}  # of sources; others are called alike
FOR_EVER = "9999-12-31T23:59:59Z"
THOUSANDS = ((1e9, "B"), (1e6, "M"), (1e3, "K"))


def resolve(pool: Pool, asked: str) -> str:
    """The config's name of a model. A name without a tag means the same as with `:latest`."""
    for name in (asked, asked.removesuffix(LATEST), asked + LATEST):
        try:
            return pool.resolve(name)
        except UnknownModel:
            continue
    have = ", ".join(pool.config.models)
    raise UnknownModel(f"model '{asked}' not found; have: {have}; put others under 'models' in the config")


def shown(name: str) -> str:
    """As Ollama lists it."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST


async def listed(pool: Pool, started: int) -> list[Fields]:
    known = await asyncio.gather(*map(pool.on_disk, pool.config.models))
    return [entry(pool, name, one, started) for name, one in zip(pool.config.models, known, strict=True)]


def entry(pool: Pool, name: str, known: OnDisk | None, started: int) -> Fields:
    return {
        "name": shown(name),
        "model": shown(name),
        "modified_at": moment(started),
        "size": known.source.bytes if known else 0,
        "digest": digest(pool.known[name], name, known),
        "details": details(pool, name, known),
        "capabilities": capabilities(pool.known[name], known),
    }


async def running(pool: Pool) -> list[Fields]:
    loaded = {name: status for name in pool.config.models if isinstance(status := pool.status(name), Loaded)}
    known = await asyncio.gather(*map(pool.on_disk, loaded))
    return [process(pool, name, loaded[name], one) for name, one in zip(loaded, known, strict=True)]


def process(pool: Pool, name: str, status: Loaded, known: OnDisk | None) -> Fields:
    stays = pool.stays(name)
    ends = None if stays is None else datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=stays)
    return {
        "name": shown(name),
        "model": shown(name),
        "size": status.memory_bytes,
        "size_vram": status.memory_bytes if status.device == "gpu" else 0,
        "digest": digest(pool.known[name], name, known),
        "details": details(pool, name, known),
        "expires_at": time_of(ends) if ends else FOR_EVER,
        "context_length": status.context_length,
    }


async def described(pool: Pool, name: str, started: int) -> Fields:
    model, known = pool.known[name], await pool.on_disk(name)
    info: Fields = {}
    if known:
        family = family_of(known.source)
        info = {
            "general.architecture": family,
            "general.parameter_count": known.source.parameters,
            f"{family}.context_length": known.context_length,
        }
    return {
        "license": "",
        "modelfile": f"# a model of Enginehouse's config\nFROM {model.origin}\n",
        "parameters": f"num_ctx                        {known.context_length}" if known else "",
        "template": (known.chat_template if known else None) or "",
        "details": details(pool, name, known),
        "model_info": {key: value for key, value in info.items() if value},
        "capabilities": capabilities(model, known),
        "modified_at": moment(started),
    }


def details(pool: Pool, name: str, known: OnDisk | None) -> Fields:
    source, family = (known.source, family_of(known.source)) if known else (None, "")
    chosen, status = known.chosen if known else None, pool.status(name)
    precision = source.precision if source else ""
    if isinstance(status, Loaded):
        precision = status.precision
    elif chosen and chosen.candidate.precision:
        precision = chosen.candidate.precision
    return {
        "parent_model": "",
        "format": chosen.candidate.format if chosen else FORMATS.get(source.kind, source.kind) if source else "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": count(source.parameters) if source and source.parameters else "",
        "quantization_level": precision,
    }


def family_of(source: Source) -> str:
    """ "qwen3" of "Qwen3ForCausalLM", and of what a .gguf file says itself."""
    return re.sub(r"For[A-Z]\w*$", "", source.architecture).lower() or source.kind


def count(parameters: int) -> str:
    size, letter = next(((size, letter) for size, letter in THOUSANDS if parameters >= size), (1, ""))
    return f"{parameters / size:.{1 if letter == 'B' else 2 if letter else 0}f}{letter}"


def digest(model: Model, name: str, known: OnDisk | None) -> str:
    """Clients take models of one digest for one model, and what they have learnt of it for true."""
    chosen = known.chosen.candidate.key if known and known.chosen else ""
    identity = [name, model, known.source.fingerprint if known else "", chosen]
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def capabilities(model: Model, known: OnDisk | None) -> list[str]:
    features = features_of(model, known)
    template = known.chat_template if known else None
    thought, _ = parser_of(template).thought
    can = {
        "completion": True,
        "tools": "tools" in features,
        "thinking": bool(template and thought and thought in template),
        "embedding": "embeddings" in features,
    }
    return [name for name, is_so in can.items() if is_so]


def features_of(model: Model, known: OnDisk | None) -> Sequence[str]:
    """Of what serves it; of what the config names, where that is not decided."""
    if known and known.chosen:
        return known.chosen.features
    if model.runtime == "upstream":
        return ("tools",)  # the least that is likely; what it has is asked when it is asked
    return runtimes()[model.runtime].features if model.runtime != "auto" else ()


def moment(seconds: int) -> str:
    return time_of(datetime.datetime.fromtimestamp(seconds, datetime.UTC))


async def check_context(pool: Pool, name: str, chosen: Options) -> None:
    """Of a model that must be fetched first it is not known yet, and whatever is asked for is taken."""
    known = await pool.on_disk(name) if chosen.num_ctx else None
    if known and chosen.num_ctx and chosen.num_ctx > known.context_length:
        raise Refused(
            f"'options.num_ctx' is {chosen.num_ctx}, and this model's context is {known.context_length} tokens; leave "
            "it out, or raise 'context' of the model in the config",
            "options.num_ctx",
            "invalid_value",
        )
