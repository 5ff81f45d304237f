"""`python -m enginehouse.optimize.toolchains.gguf.upstream_process`: llama.cpp's converter in a process of its own,
with its own gguf package before the installed one, and with torch and transformers."""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.child_process import carry_out
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.toolchains.gguf.config import TokenIds
from enginehouse.optimize.toolchains.gguf.text import KEY
from enginehouse.optimize.toolchains.gguf.vocabulary import pre_tokenizer, read_tokenizer, tokenizer_keys

OURS = (KEY, "enginehouse.eos_token_ids")
EMBEDDING = "token_embd.weight"
SPACE = "tokenizer.ggml.add_space_prefix"  # what our text rules put in front, llama.cpp must not

# What transformers 5 no longer writes into a config.json, for the model is so whatever is said there.
LEFT_OUT: dict[str, dict[str, Any]] = {
    "DeepseekV3ForCausalLM": {"scoring_func": "sigmoid"},
    "Cohere2ForCausalLM": {"rotary_pct": 1.0},
}


class Convert(msgspec.Struct, frozen=True):
    converter: str  # folder with the packages `conversion` and `gguf`
    checkpoint: str
    output: str
    precision: str  # "F32", "F16" or "BF16"


class Converted(msgspec.Struct, frozen=True, tag="converted"): ...


def work(order: Convert, report: Report) -> Converted:
    sys.path.insert(0, order.converter)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        write(order, report)
    except CannotBuild:
        raise
    except MemoryError as error:
        raise CannotBuild("llama.cpp's converter ran out of memory", environment=True) from error
    except OSError as error:
        of_disk = error.errno is not None
        raise CannotBuild(f"llama.cpp's converter failed: {first_line(error)}", environment=of_disk) from error
    except Exception as error:  # of a hundred modules, each with errors of its own
        raise CannotBuild(f"llama.cpp's converter does not take this checkpoint: {first_line(error)}") from error
    return Converted()


def write(order: Convert, report: Report) -> None:
    import conversion  # type: ignore[import-not-found]
    import gguf
    import torch
    import transformers

    for name in ("hf-to-gguf", "gguf"):  # they warn of much that is as it should be
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    for loader in (transformers.AutoConfig, transformers.AutoTokenizer):
        run_no_code(loader)
    kinds = {"F32": "ALL_F32", "F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
    with torch.inference_mode():
        folder = Path(order.checkpoint)
        hparams = known_words(conversion.ModelBase.load_hparams(folder, False), read_json(folder / "config.json"))
        architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
        hparams = in_old_words(architecture, LEFT_OUT.get(architecture, {}) | hparams)
        kind = conversion.get_model_class(architecture)
        kind.no_mtp = kind.supports_mtp_export  # heads that guess further tokens, for nobody here
        # no name of the checkpoint's: a "phi3" in it changes how llama.cpp cuts text, and can end the process
        made = kind(
            folder, gguf.LlamaFileType[kinds[order.precision]], Path(order.output), hparams=hparams, model_name="model"
        )
        model = getattr(made, "impl", made)  # some only choose among others
        speak_for_itself(model, folder)
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
        writer = model.gguf_writer
        writer.write_header_to_file(path=model.fname_out)
        writer.write_kv_data_to_file()
        count_bytes(writer, report)
        writer.write_tensors_to_file()
        writer.close()


def run_no_code(loader: Any) -> None:
    """Whatever the converter asks for, no code of a checkpoint is run."""
    original = loader.from_pretrained

    def from_pretrained(*arguments: Any, **named: Any) -> Any:
        return original(*arguments, **{**named, "trust_remote_code": False})

    loader.from_pretrained = from_pretrained


def known_words(hparams: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """The converter was written for transformers 4.57: a config as transformers 5 reads it lacks or renames what the
    checkpoint's own `raw` one may still say, and has these in `rope_parameters` only."""
    words = hparams | {name: value for name, value in raw.items() if value is not None}
    if isinstance(text := raw.get("text_config"), dict):
        words["text_config"] = known_words(hparams.get("text_config") or {}, text)
    rope = words.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    return {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope} | words


def in_old_words(architecture: str, hparams: dict[str, Any]) -> dict[str, Any]:
    """Kinds of layers, which transformers 5 has renamed."""
    if architecture == "GraniteMoeHybridForCausalLM" and (layers := hparams.get("layer_types")):
        old = {"linear_attention": "mamba", "full_attention": "attention"}
        return hparams | {"layer_types": [old.get(kind, kind) for kind in layers]}
    if architecture != "NemotronHForCausalLM":
        return hparams
    kinds = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E"}
    pattern = hparams.get("hybrid_override_pattern") or "".join(kinds[kind] for kind in hparams["layers_block_type"])
    if "E" not in pattern:  # defaults of transformers 5, by which the converter takes it for a mixture of experts
        of_experts = ("n_group", "topk_group")
        hparams = {name: value for name, value in hparams.items() if "expert" not in name and name not in of_experts}
    return hparams | {"hybrid_override_pattern": pattern, "num_hidden_layers": len(pattern)}


def speak_for_itself(model: Any, folder: Path) -> None:
    """Makes the model write a tokenizer also where the converter's table of known ones does not have it."""
    table, theirs, writer = model.get_vocab_base_pre, model.set_vocab, model.gguf_writer

    def by_regex(tokenizer: Any) -> str:
        try:
            return str(table(tokenizer))
        except NotImplementedError:
            return pre_tokenizer(read_tokenizer(folder))

    def set_vocab() -> None:
        raw = read_json(folder / "config.json")
        try:
            ids = msgspec.convert({**raw, **(raw.get("text_config") or {}), "vocab_size": vocabulary(model)}, TokenIds)
            ours = tokenizer_keys(folder, ids)
        except (CannotBuild, msgspec.ValidationError) as error:
            ours, refusal = {}, error
        before = [dict(shard) for shard in writer.kv_data]
        try:
            theirs()
        except Exception:  # theirs wants a file that is not there, say tokenizer.model
            if not ours:
                raise refusal from None
            writer.kv_data[:] = before
            add(writer, ours)
        else:
            add(writer, {name: ours[name] for name in (*OURS, SPACE) if name in ours})

    model.get_vocab_base_pre, model.set_vocab = by_regex, set_vocab


def vocabulary(model: Any) -> int:
    """Tokens: as many as rows of the embedding that was written."""
    written = next(tensors for tensors in model.gguf_writer.tensors if EMBEDDING in tensors)
    return int(written[EMBEDDING].shape[0])


def add(writer: Any, keys: dict[str, Any]) -> None:
    for key, value in keys.items():
        writer.kv_data[0].pop(key, None)
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)


def count_bytes(writer: Any, report: Report) -> None:
    """Reports each tensor as it is written."""
    tensors = [tensor for shard in writer.tensors for tensor in shard.values()]
    total, padding, done = sum(tensor.nbytes for tensor in tensors), writer.write_padding, 0

    def write_padding(file: Any, size: int, *rest: Any) -> None:
        nonlocal done
        padding(file, size, *rest)
        done += size
        report("convert", min(1.0, done / max(1, total)))

    writer.write_padding = write_padding


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = traceback.extract_tb(error.__traceback__)[-1]  # an assertion says no more than its place
    return f"{type(error).__name__}: {lines[0][:300] if lines else where.line}"


if __name__ == "__main__":
    carry_out(Convert, work)
