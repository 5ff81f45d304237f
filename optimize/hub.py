"""Fetches a model from the hub into huggingface_hub's own cache. Runs in the build process only."""

from pathlib import Path

from optimize.recipe import CannotBuild

# Never *.bin, *.pt, *.py: a pickle or remote code is not run here, so it is not fetched either.
CHECKPOINT_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


def fetch(source: str, revision: str | None) -> str:
    """The local folder or .gguf file of a hub id. What is cached is used when the hub cannot be reached."""
    from huggingface_hub import errors

    try:
        return download(source, revision)
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


def download(source: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download, snapshot_download

    owner, name, *file = source.split("/", 2)
    if file:
        return str(hf_hub_download(f"{owner}/{name}", file[0], revision=revision))
    folder = Path(snapshot_download(source, allow_patterns=CHECKPOINT_FILES, revision=revision))
    if not any(folder.glob("*.safetensors")):
        remedy = f"if it holds .gguf files, name one: {source}/FILE.gguf"
        raise CannotBuild(f"'{source}' has no safetensors, the only weights read from a repository; {remedy}")
    return str(folder)
