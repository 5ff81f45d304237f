"""The artifact store: a folder per artifact, named by its recipe's key, complete or not there at all."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from optimize.recipe import Artifact, CannotBuild, Manifest, Quality

MANIFEST = "manifest.json"


class Store:
    def __init__(self, cache: Path) -> None:
        self._artifacts = cache / "artifacts"
        self._locks = cache / "locks"
        self._discarded = cache / "discarded"  # manifests of artifacts that did not pass the quality gate

    def find(self, key: str, entry: str) -> Artifact | None:
        manifest = self.manifest(key)
        if manifest is None:
            return None
        path, recipe = self._artifacts / key / entry, manifest.recipe
        size = sum(file.bytes for file in manifest.files.values())
        return Artifact(recipe.format, recipe.precision, str(path), size, manifest.quality)

    def manifest(self, key: str) -> Manifest | None:
        """None where there is no whole artifact of that key, or one of another version of the manifest."""
        try:
            return msgspec.json.decode((self._artifacts / key / MANIFEST).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            return None

    def quality(self, key: str) -> Quality | None:
        """What the gate found of an artifact, also of one that was discarded for it; None where it found nothing."""
        try:
            found = self.manifest(key) or msgspec.json.decode((self._discarded / key).read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):
            return None
        return found.quality

    def discard(self, key: str) -> None:
        """Removes an artifact but not what is known of it."""
        if manifest := self.manifest(key):
            self._discarded.mkdir(exist_ok=True)
            (self._discarded / key).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
            self.remove(key)

    def remove(self, key: str) -> None:
        (self._artifacts / key / MANIFEST).unlink(missing_ok=True)  # from here on it is not found
        shutil.rmtree(self._artifacts / key, ignore_errors=True)

    @contextmanager
    def building(self, key: str) -> Iterator[Path]:
        """An empty folder to build in, held by this process alone across all servers; gone afterwards unless published.

        The lock falls with the process, however it ends; the next holder sweeps up what a killed one left behind.
        """
        try:
            self._artifacts.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(parents=True, exist_ok=True)
            lock = (self._locks / key).open("w")
        except OSError as error:
            raise CannotBuild(
                f"the cache '{self._artifacts.parent}' cannot be written: {error.strerror}; "
                "set cache_dir to a folder that can",
                environment=True,
            ) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder = self._artifacts / f".building-{key}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Makes a finished build visible in one rename, everything on disk before it."""
        (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        for file in folder.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        target = self._artifacts / manifest.key
        shutil.rmtree(target, ignore_errors=True)  # only ever something broken: a whole artifact is never built again
        folder.rename(target)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._artifacts).free


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
