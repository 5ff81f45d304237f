"""Models that other programs have on this disk: the hub's own cache, LM Studio's and Ollama's folders. Looks only."""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.layout import gguf_models, layout_of
from enginehouse.optimize.sources.resolve import list_files

LM_STUDIO = (".lmstudio/models", ".cache/lm-studio/models")  # below the home folder; the second before version 0.3
OLLAMA = ".ollama/models"
WEIGHTS = "application/vnd.ollama.image.model"
DIGEST_LETTERS = len("sha256:") + 64


class Found(msgspec.Struct, frozen=True):
    owner: str  # "hub", "LM Studio", "Ollama"
    name: str  # as its owner calls it
    kind: str  # of a source
    bytes: int
    source: str  # what a config says for it: a hub id, a path
    path: str  # where its first file lies


def find(home: Path) -> list[Found]:
    """By owner and name. What cannot be read is not there."""
    return sorted((*hub(), *lm_studio(home), *ollama(home)), key=lambda found: (found.owner, found.name.lower()))


def hub() -> Iterator[Found]:
    """What is cached in whole; whatever is not is fetched on the first request."""
    import huggingface_hub

    try:
        repositories = huggingface_hub.scan_cache_dir().repos
    except huggingface_hub.errors.CacheNotFound:
        return
    for repository in repositories:
        if repository.repo_type != "model" or not repository.revisions:
            continue
        newest = max(repository.revisions, key=lambda revision: revision.last_modified)
        files = {
            file.file_path.relative_to(newest.snapshot_path).as_posix(): file.size_on_disk for file in newest.files
        }
        for source, kind, size in sources(repository.repo_id, files):
            yield Found("hub", source, kind, size, source, str(newest.snapshot_path))


def lm_studio(home: Path) -> Iterator[Found]:
    for top in (home / folder for folder in LM_STUDIO):
        for repository in top.glob("*/*/"):
            files = {name: size(repository / name) for name in readable(repository)}
            name = f"{repository.parent.name}/{repository.name}"
            for source, kind, bytes in sources(name, files):
                path = repository / source.removeprefix(name).strip("/")
                yield Found("LM Studio", source, kind, bytes, str(path), str(path))


def ollama(home: Path) -> Iterator[Found]:
    """Its weights are .gguf files by their hash; a link gives them a name that a config can have."""
    top = Path(os.environ.get("OLLAMA_MODELS") or home / OLLAMA)
    for manifest in (top / "manifests").glob("*/*/*/*"):
        try:
            layers = json.loads(manifest.read_text())["layers"]
            digest = next(str(layer["digest"]) for layer in layers if layer["mediaType"] == WEIGHTS)
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            continue
        blob = top / "blobs" / digest.replace(":", "-")
        if len(digest) == DIGEST_LETTERS and "/" not in digest and blob.is_file():
            name = f"{manifest.parent.name}:{manifest.name}"
            yield Found("Ollama", name, "gguf", size(blob), "", str(blob))


def sources(name: str, files: dict[str, int]) -> Iterator[tuple[str, str, int]]:
    """Source, kind and bytes of all that a repository holds of these files."""
    models = gguf_models(list(files))
    for file, parts in models.items():
        yield f"{name}/{parts[0]}" if len(models) > 1 or "/" in file else name, "gguf", sum(files[p] for p in parts)
    if models:
        return
    for folder in sorted({str(PurePosixPath(file).parent) for file in files}):
        inside = [PurePosixPath(file).name for file in files if str(PurePosixPath(file).parent) == folder]
        try:
            layout = layout_of(name, inside, "auto")
        except CannotBuild:
            continue
        below = "" if folder == "." else f"{folder}/"
        yield f"{name}/{below}".rstrip("/"), layout.kind, sum(files[below + file] for file in layout.files)


def readable(folder: Path) -> list[str]:
    try:
        return list_files(folder)
    except OSError:
        return []


def size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def link(found: Found, folder: Path) -> Path:
    """A name that ends in .gguf for a file that has none."""
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / f"{found.name.replace(':', '-')}.gguf"
    if not (name.is_symlink() and name.readlink() == Path(found.path)):
        name.unlink(missing_ok=True)
        name.symlink_to(found.path)
    return name
