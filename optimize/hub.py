"""Fetches a model from the hub into huggingface_hub's own cache. Runs in the build process only."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimize.recipe import CannotBuild, Report

# Never *.bin, *.pt, *.py: a pickle or remote code is not run here, so it is not fetched either.
CHECKPOINT_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


def fetch(source: str, revision: str | None, report: Report) -> str:
    """The local folder or .gguf file of a hub id. What is cached is used when the hub cannot be reached."""
    from huggingface_hub import errors

    try:
        return download(source, revision, report)
    except errors.GatedRepoError as error:
        raise CannotBuild(f"'{source}' is gated: accept its licence on the hub and set HF_TOKEN") from error
    except errors.RepositoryNotFoundError as error:
        raise CannotBuild(
            f"the hub knows no '{source}', or it is private: check the spelling, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CannotBuild(f"'{source}' has no revision '{revision}'") from error
    except errors.LocalEntryNotFoundError as error:
        raise CannotBuild(f"'{source}' is not cached and the hub cannot be reached") from error
    except errors.EntryNotFoundError as error:
        raise CannotBuild(f"'{source}': no such file in that repository") from error
    except errors.HfHubHTTPError as error:
        raise CannotBuild(f"the hub refuses '{source}': {str(error).splitlines()[0]}") from error


def download(source: str, revision: str | None, report: Report) -> str:
    from huggingface_hub import hf_hub_download, snapshot_download

    owner, name, *file = source.split("/", 2)
    if file:
        wanted: dict[str, Any] = {"repo_id": f"{owner}/{name}", "filename": file[0], "revision": revision}
        return str(hf_hub_download(**wanted, tqdm_class=bar(missing_bytes(hf_hub_download, wanted), report)))
    wanted = {"repo_id": source, "allow_patterns": CHECKPOINT_FILES, "revision": revision}
    bars = bar(missing_bytes(snapshot_download, wanted), report)
    folder = Path(snapshot_download(**wanted, tqdm_class=bars))
    if not any(folder.glob("*.safetensors")):
        remedy = f"if it holds .gguf files, name one: {source}/FILE.gguf"
        raise CannotBuild(f"'{source}' has no safetensors, the only weights read from a repository; {remedy}")
    return str(folder)


def missing_bytes(download: Callable[..., Any], wanted: dict[str, Any]) -> int:
    """What is to be downloaded; 0 where the hub does not say, and the download itself will tell why. Raises OSError
    when the disk has no room for it."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import DryRunError

    try:
        found = download(**wanted, dry_run=True)
    except DryRunError:
        return 0
    files = found if isinstance(found, list) else [found]
    missing: int = sum(file.file_size for file in files if file.will_download)
    free = shutil.disk_usage(next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if path.exists()))
    if missing > free.free:
        raise OSError(errno.ENOSPC, f"{missing >> 20} MiB are needed, {free.free >> 20} MiB are free")
    return missing


def bar(total: int, report: Report) -> Any:
    """A class of progress bars for huggingface_hub to feed: shows nothing, reports the fraction of all bytes."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self._bytes = options.get("initial", 0) if options.get("unit") == "B" else None  # others count files
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._bytes is not None and total:
                self._bytes += n or 0
                report("fetch", min(1.0, self._bytes / total))

    return Bar
