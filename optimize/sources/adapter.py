"""A PEFT adapter, and the checkpoint that comes of merging one into a base."""

import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize import intermediate
from enginehouse.optimize.artifact import CannotBuild, Report, Source
from enginehouse.optimize.sources.checks import is_finite
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.quantizations import already_quantized
from enginehouse.optimize.sources.resolve import copy_beside_weights, fingerprint, list_files
from enginehouse.optimize.sources.safetensors import read_header

MERGE_VERSION = "1"  # raise it with every change to the bytes of a merged checkpoint
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGED = "merged.json"  # what was merged, in the result; by it, results of the same size and edges differ
# Whose merged weights gave what PEFT gives with the adapter beside the model; prompts and prefixes are no weights.
KINDS = ("LORA", "LOHA", "LOKR", "IA3")
EMBEDDINGS = {"embed_tokens", "wte", "word_embeddings", "embed_in", "lm_head"}


class Adapter(msgspec.Struct, frozen=True):
    name: str  # as written in the config
    path: str
    fingerprint: str


def find_adapter(name: str, path: str, base: Source) -> Adapter:
    """Looks at the config and the header only; raises CannotBuild for what cannot be merged into this base."""
    folder = Path(path).expanduser()
    try:
        check_base(base)
        check_adapter(folder)
        return Adapter(name, str(folder.absolute()), fingerprint([folder / CONFIG, folder / WEIGHTS]))
    except CannotBuild as error:
        raise CannotBuild(f"adapter '{name}' cannot be merged into '{base.id}': {error}") from error
    except OSError as error:
        raise CannotBuild(f"adapter '{name}': '{error.filename}' cannot be read: {error.strerror}") from error


def check_base(base: Source) -> None:
    if base.kind != "checkpoint":
        raise CannotBuild(f"the source is a ready '{base.kind}' artifact; give the 16-bit checkpoint it was made of")
    if reason := already_quantized(read_json(Path(base.path) / "config.json")):
        raise CannotBuild(reason)


def check_adapter(folder: Path) -> None:
    if not folder.is_dir():
        raise CannotBuild("there is no such folder; an adapter is a folder as PEFT saves it, or a hub id")
    names = list_files(folder)
    if CONFIG not in names:
        raise CannotBuild(f"it has no {CONFIG}; an adapter is a folder as PEFT saves it")
    if WEIGHTS not in names:
        pickle = "only safetensors are read, never a pickle; save it again with save_pretrained(..)"
        raise CannotBuild(f"it has no {WEIGHTS}: {pickle if 'adapter_model.bin' in names else 'is it complete?'}")
    config = read_json(folder / CONFIG)
    kind = str(config.get("peft_type"))
    if kind not in KINDS:
        raise CannotBuild(f"'{kind}' adapters are not merged; these are: {', '.join(KINDS)}")
    if config.get("megatron_config"):  # PEFT would import the module it names
        raise CannotBuild(f"its {CONFIG} names code to be imported in 'megatron_config'; remove that")
    for name, tensor in read_header(folder / WEIGHTS).items():
        if not is_finite(tensor):
            raise CannotBuild(f"its tensor '{name}' has NaN or infinite weights; it is broken, download it again")


def folder_of(base: Source, adapter: Adapter, cache: Path) -> Path:
    return intermediate.place(cache, "merged", MERGE_VERSION, base.fingerprint, adapter.fingerprint)


def merge(base: Source, adapter: Adapter, cache: Path, report: Report) -> str:
    """Writes the merged checkpoint into the cache, whole or not at all, once for all processes."""

    def make(folder: Path) -> None:
        intermediate.check_free(folder, base.bytes)
        write(base, adapter, folder, report)

    with intermediate.kept(folder_of(base, adapter, cache), make) as made:
        return str(made)


def write(base: Source, adapter: Adapter, folder: Path, report: Report) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        import peft
        import transformers
    except ImportError as error:
        raise CannotBuild(
            f"adapters are merged by '{error.name}', which is not installed; pip install 'enginehouse[optimize]'"
        ) from error

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    report("convert", 0.0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base.path, dtype="auto", trust_remote_code=False)
    model = merged(model, base, adapter, peft)
    report("convert", 0.5)
    model.save_pretrained(folder)
    copy_beside_weights(Path(base.path), folder)  # over what transformers makes of them
    made_of = {"base": base.fingerprint, "adapter": adapter.fingerprint, "peft": version("peft")}
    (folder / MERGED).write_bytes(msgspec.json.encode(made_of))
    report("convert", 1.0)


def merged(model: Any, base: Source, adapter: Adapter, peft: Any) -> Any:
    config = peft.PeftConfig.from_pretrained(adapter.path)
    config.inference_mode = True
    misfit = f"adapter '{adapter.name}' does not fit '{base.id}'"
    origin = config.base_model_name_or_path
    remedy = f"it was made for '{origin}'; give that as the source" if origin else "give the model it was made for"
    try:
        wrapped = peft.PeftModel(model, config)
        loaded = wrapped.load_adapter(adapter.path, "default")
        check_keys(loaded, misfit, remedy)
        check_tied(model, config, wrapped, misfit)
        return wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise CannotBuild(f"{misfit}: {first_reason(error)}; {remedy}") from error


def check_keys(loaded: Any, misfit: str, remedy: str) -> None:
    if loaded.missing_keys:
        raise CannotBuild(f"{misfit}: it has no '{loaded.missing_keys[0]}'; {remedy}")
    if loaded.unexpected_keys:
        raise CannotBuild(f"{misfit}: the model has no place for '{loaded.unexpected_keys[0]}'; {remedy}")


def check_tied(model: Any, config: Any, wrapped: Any, misfit: str) -> None:
    """Where head and embedding are one weight, what is merged into one would be in both."""
    targeted = {name.rsplit(".", 1)[-1] for name in wrapped.base_model.targeted_module_names}
    targeted |= {name.rsplit(".", 1)[-1] for name in config.modules_to_save or ()}
    if getattr(config, "trainable_token_indices", None):
        targeted.add("embed_tokens")
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and (changed := sorted(targeted & EMBEDDINGS)):
        raise CannotBuild(f"{misfit}: it changes '{changed[0]}', and the model's head and embedding are one weight")


def first_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    found = next((line for line in lines if "mismatch" in line), lines[0] if lines else type(error).__name__)
    return re.sub(r"[.\s]+$", "", found)[:300]
