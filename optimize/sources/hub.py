"""Fetches a model from the hub into huggingface_hub's own cache. Runs in the build process only."""

import contextlib
import glob
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.sources.layout import PART, Layout, layout_of

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
ABANDONED_SECONDS = 3600  # a download under way writes more often
Choice = Callable[[Sequence[str]], Layout]


def fetch(
    source: str, revision: str | None, precision: str, report: Report, cached_only: bool = False
) -> tuple[str, bool]:
    """The folder or .gguf file of OWNER/NAME, OWNER/NAME/FOLDER or OWNER/NAME/FILE.gguf on this disk, and whether it
    is what the cache had because the hub is out of reach, or not to be asked. `precision`: the model's, for a choice of
    .gguf files."""
    owner, name, *rest = source.split("/", 2)
    repository, inside = f"{owner}/{name}", rest[0].strip("/") if rest else ""

    def choose(names: Sequence[str]) -> Layout:
        if inside.endswith(".gguf"):
            return gguf_file(repository, inside, names)
        below = [name.removeprefix(f"{inside}/") for name in names if name.startswith(f"{inside}/") or not inside]
        if not below:
            raise CannotBuild(f"'{repository}' has no folder '{inside}', and there is no folder '{source}' here")
        layout = layout_of(source, below, precision)
        files = tuple(f"{inside}/{file}" if inside else file for file in layout.files)
        return Layout(layout.kind, files, f"{inside}/{layout.entry}".strip("/"))

    with explained(source, repository, revision, cached_only):
        return download(repository, revision, choose, report, cached_only)


def sizes(source: str, revision: str | None) -> dict[str, int]:
    """Bytes of each file of OWNER/NAME, by its name."""
    import huggingface_hub

    with explained(source, source, revision, cached_only=False):
        files = huggingface_hub.HfApi().list_repo_tree(source, revision=revision, recursive=True)
        return bytes_by_name(files)


def bytes_by_name(files: Iterable[Any]) -> dict[str, int]:
    """Of a repository's tree, which has folders too."""
    import huggingface_hub

    return {file.path: file.size for file in files if isinstance(file, huggingface_hub.RepoFile)}


def fetch_adapter(source: str, report: Report, cached_only: bool = False) -> tuple[str, bool]:
    """The folder of a PEFT adapter."""

    def choose(names: Sequence[str]) -> Layout:
        if "adapter_config.json" not in names:
            raise CannotBuild(f"adapter '{source}' has no adapter_config.json; an adapter is what PEFT saves")
        return Layout("adapter", tuple(name for name in names if name in ADAPTER))

    with explained(source, source, None, cached_only):
        return download(source, None, choose, report, cached_only)


def gguf_file(repository: str, file: str, names: Sequence[str]) -> Layout:
    """With its other parts, if it is one of several."""
    if file not in names:
        there = ", ".join(name for name in names if name.endswith(".gguf")) or "none that ends in .gguf"
        raise CannotBuild(f"'{repository}' has no such file: '{file}'; there is: {there}")
    whole = PART.sub(".gguf", file)
    parts = sorted(name for name in names if PART.sub(".gguf", name) == whole)
    return Layout("gguf", tuple(parts), parts[0])


@contextlib.contextmanager
def explained(source: str, repository: str, revision: str | None, cached_only: bool) -> Iterator[None]:
    """Every error of the hub's in one sentence with its remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise CannotBuild(
            f"'{source}' is gated: accept its licence on the hub and set HF_TOKEN to a token of that account"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CannotBuild(
            f"the hub knows no '{repository}', or it is private, and there is no folder '{source}' here: check the "
            "spelling, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CannotBuild(
            f"'{source}' has no revision '{revision}'; name a branch, a tag or a commit, or leave 'revision' out"
        ) from error
    except errors.HFValidationError as error:
        raise CannotBuild(f"'{source}' is no hub id, and there is no folder of that name here: {error}") from error
    except (errors.RevisionResolutionError, errors.LocalEntryNotFoundError) as error:
        if cached_only:
            raise CannotBuild(f"'{source}' is not fetched yet; its first request does so", environment=True) from error
        raise CannotBuild(
            f"'{source}' is not cached in whole and the hub cannot be reached: connect once, or give a local folder",
            environment=True,
        ) from error
    except errors.HfHubHTTPError as error:
        raise CannotBuild(refused(source, error), environment=True) from error
    except errors.HTTPError as error:
        raise CannotBuild(
            f"the connection to the hub broke while '{source}' was fetched ({type(error).__name__}); ask again: whole "
            "files are kept",
            environment=True,
        ) from error


def refused(source: str, error: Exception) -> str:
    status = error.response.status_code  # type: ignore[attr-defined]
    if status == 401:
        return f"the hub does not know the token in HF_TOKEN: set a valid one for '{source}', or none"
    if status == 403:
        return f"the token in HF_TOKEN may not read '{source}': give it the right to read gated repositories"
    if status == 429:
        return f"the hub puts off '{source}': too many requests; ask again in some minutes, or set HF_TOKEN"
    return f"the hub fails on '{source}' with status {status}; ask again later"


def download(
    repository: str, revision: str | None, choose: Choice, report: Report, cached_only: bool
) -> tuple[str, bool]:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    api, revision = huggingface_hub.HfApi(), revision or huggingface_hub.constants.DEFAULT_REVISION
    sweep(repository)
    try:
        if cached_only:
            raise errors.OfflineModeIsEnabled
        commit = api.repo_info(repository, revision=revision).sha
        offline = False
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
            raise  # the hub is there, and says no
        commit = api.resolve_revision(repository, revision=revision, local_files_only=True).resolved
        offline = True
    try:
        files = huggingface_hub.get_cached_repo_tree(repository, revision=commit)
    except errors.CachedRepoTreeNotFoundError:
        if cached_only:
            raise errors.LocalEntryNotFoundError("its list of files is not cached") from None
        files = list(api.list_repo_tree(repository, revision=commit, recursive=True))
    sizes = bytes_by_name(files)
    layout = choose(list(sizes))
    if not cached_only:
        left = [file for file in layout.files if not cached(repository, file, commit)]
        check_disk(repository, sum(sizes[file] for file in left))
    folder = huggingface_hub.snapshot_download(
        repository,
        revision=commit if offline else revision,
        local_files_only=cached_only,
        allow_patterns=[glob.escape(file) for file in layout.files],
        tqdm_class=bar(sum(sizes[file] for file in layout.files), report),
    )
    return str(Path(folder) / layout.entry), offline


def cached(repository: str, file: str, commit: str | None) -> bool:
    import huggingface_hub

    return isinstance(huggingface_hub.try_to_load_from_cache(repository, file, revision=commit), str)


def check_disk(repository: str, needed: int) -> None:
    """Raises CannotBuild where the disk of the hub's cache has less free."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise CannotBuild(
            f"'{repository}' takes {needed >> 20} MiB and {free >> 20} MiB are free on the disk of '{there}'; free "
            "some, or set HF_HOME to a folder on another disk",
            environment=True,
        )


def bar(whole: int, report: Report) -> Any:
    """What huggingface_hub tells its progress to; shows nothing."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: object, **named: object) -> None:
            self._bytes = named.pop("name", None) == "huggingface_hub.snapshot_download"
            super().__init__(*arguments, **{**named, "disable": True})
            self.done = 0.0

        def update(self, n: float | None = 1) -> None:
            self.done += n or 0
            if self._bytes and whole:
                report("fetch", min(self.done / whole, 1.0))

    return Bar


def sweep(repository: str) -> None:
    """Removes what downloads that were killed have left in the hub's cache: it takes none of them up again."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    for part in blobs.glob("*.incomplete"):
        if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
            part.unlink(missing_ok=True)
