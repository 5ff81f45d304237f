"""What a folder or a repository holds, decided from its file names: which of them make the model, and of what kind."""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.gguf_header import ALIASES, PRECISIONS

# A folder with this file in it holds an artifact that is ready for the engines of that format.
READY = {"openvino_model.xml": "openvino", "genai_config.json": "onnx"}
SMALL = ("*.json", "*.jinja", "tokenizer.model", "calibration.txt", "eval.jsonl")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Never: a pickle or remote code is not run here. Mistral's own files beside transformers' hold the weights again.
LEFT_OUT = ("*.py", "consolidated*.safetensors", "adapter_*")
NEEDED = {
    "checkpoint": ("*.safetensors", *SMALL),
    "openvino": ("openvino_*", *SMALL),
    "onnx": ("*.onnx", "*.onnx.data", "*.onnx_data", "*.data", "*.txt", *SMALL),
}
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
BESIDE_MODELS = ("mmproj*", "*imatrix*")  # .gguf files that are no language models
DEFAULT_GGUF = "Q4_K_M"
NAMED = 12  # of several models, in a message


class Layout(msgspec.Struct, frozen=True):
    kind: str  # "checkpoint" or an artifact format
    files: tuple[str, ...]  # all that is needed of it
    entry: str = ""  # the file to be loaded, "" for the folder itself


def layout_of(source: str, names: Sequence[str], precision: str) -> Layout:
    """`names`: paths below the source, with "/". `precision`: the model's. Raises CannotBuild in one sentence.

    A checkpoint goes before a ready artifact beside it: it serves every engine, and can be compared with what is made.
    """
    top = [name for name in names if "/" not in name]
    if kind := kind_of(top):
        return Layout(kind, tuple(name for name in top if matches(name, NEEDED[kind]) and not left_out(name)))
    if models := gguf_models(names):
        files = models[choose(source, list(models), precision)]
        return Layout("gguf", files, files[0])
    raise CannotBuild(f"source '{source}' {why_nothing(source, names, top)}")


def kind_of(top: Sequence[str]) -> str | None:
    if "config.json" in top and any(matches(name, ("*.safetensors",)) and not left_out(name) for name in top):
        return "checkpoint"
    return next((kind for name, kind in READY.items() if name in top), None)


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def left_out(name: str) -> bool:
    return matches(name, LEFT_OUT)


def gguf_models(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Its parts by each model's name; the first is what an engine is given."""
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(".gguf") and not matches(PurePosixPath(name).name, BESIDE_MODELS):
            models.setdefault(PART.sub(".gguf", name), []).append(name)
    return {name: tuple(parts) for name, parts in models.items()}


def choose(source: str, models: Sequence[str], precision: str) -> str:
    """Of several models: the one in the precision that is pinned, else in DEFAULT_GGUF."""
    if len(models) == 1:
        return models[0]
    known = ALIASES | {name.lower(): name for name in PRECISIONS.values()}
    wanted = DEFAULT_GGUF if precision == "auto" else known.get(precision.lower(), precision)
    fitting = [name for name in models if precision_in(name) == wanted.upper()]
    if len(fitting) == 1:
        return fitting[0]
    found = fitting or models
    named = ", ".join(found[:NAMED]) + (", ..." if len(found) > NAMED else "")
    how_many = f"{len(fitting)} gguf models in {wanted}" if fitting else f"gguf models, but none in {wanted}"
    raise CannotBuild(f"source '{source}' holds {how_many}; name one, as in {source}/{found[0]}; there are: {named}")


def precision_in(name: str) -> str | None:
    known = "|".join(sorted(PRECISIONS.values(), key=len, reverse=True))
    found = re.findall(rf"(?<![a-z0-9])({known})(?![a-z0-9_])", PurePosixPath(name).name, re.IGNORECASE)
    return str(found[-1]).upper() if found else None


def why_nothing(source: str, names: Sequence[str], top: Sequence[str]) -> str:
    if "adapter_config.json" in top:
        return "is an adapter; name the model that it was made for as 'source', and this as 'adapter'"
    if folders := [folder for folder, files in by_folder(names).items() if kind_of(files)]:
        named = ", ".join(folders[:NAMED]) + (", ..." if len(folders) > NAMED else "")
        return f"holds its models in folders; name one, as in {source}/{folders[0]}; there are: {named}"
    if any(matches(name, PICKLES) for name in top):
        return "has no *.safetensors: only safetensors are read, never a pickle; convert it first"
    if "config.json" not in top:
        return "has no config.json; a folder must be a Hugging Face checkpoint, or hold an artifact that is ready"
    return "has no *.safetensors: is the download complete?"


def by_folder(names: Sequence[str]) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.parent.name:
            folders.setdefault(str(path.parent), []).append(path.name)
    return folders
