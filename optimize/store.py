"""The artifact store: a folder per artifact, named by its recipe's key, complete or not there at all."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from enginehouse.optimize.artifact import Artifact, Manifest, Quality
from enginehouse.optimize.locks import Locks

MANIFEST = "manifest.json"
BUILDING, REPLACED, USE = ".building-", ".old", ".use"
UNFINISHED = (BUILDING, ".making-")
# What takes room, by the folder of the cache it lies in: artifacts; what sources said of the quality gate's texts; KV
# of prompts that were read; files of batches; and what is made on the way to an artifact, by the beginning of its name.
KINDS = {"artifact": "artifacts", "reference": "references", "kv": "kv", "file": "files"}
INTERMEDIATE = "intermediate"
# Checkpoints that .gguf files were made into, and exports that several precisions are made of: only builds want them.
FOR_BUILDS = ("dequantized", "exported")
# Sources with an adapter merged into them, and those whose quantized weights were brought to 16 bits: models are served
# from them. Databases of what was learnt and of stored responses are not pruned, nor what people wrote for batches.
FOR_MODELS = ("merged", "widened")
PRUNED = (("unfinished",), ("kv",), FOR_BUILDS, ("artifact", *FOR_MODELS), ("reference",))  # in this order


def check_free(needed: int, free: int) -> None:
    """Raises OSError where there is less room on the disk than is needed."""
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed >> 20} MiB are needed, {free >> 20} MiB are free")


class CacheEntry(msgspec.Struct, frozen=True):
    """Something that takes room in the cache."""

    name: str  # an artifact's key, or what it is called in the folder of its kind
    kind: str  # as in KINDS, FOR_BUILDS and FOR_MODELS, "unfinished" or "database"
    bytes: int
    used: float  # when last, in seconds since the epoch
    in_use: bool
    manifest: Manifest | None = None  # of an artifact, None where it cannot be read


class Store:
    def __init__(self, cache: Path, folder: str = KINDS["artifact"]) -> None:
        """`folder`: of the cache, in which things are built."""
        self.cache = cache
        self._artifacts = cache / folder
        self._locks = Locks(cache)
        self._discarded = cache / "discarded"  # manifests of artifacts that did not pass the quality gate

    def find(self, key: str, entry: str) -> Artifact | None:
        manifest = self.manifest(key)
        if manifest is None:
            return None
        path, recipe = self._artifacts / key / entry, manifest.recipe
        size = sum(file.bytes for file in manifest.files.values())
        return Artifact(recipe.format, recipe.precision, str(path), size, manifest.quality, key)

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

    def verify(self, key: str) -> str | None:
        """The first file that is not as it was built, in one sentence. Reads everything."""
        manifest = self.manifest(key)
        if manifest is None or manifest.recipe.key != key:
            return f"'{key}' has no {MANIFEST} that can be read"
        for name, file in manifest.files.items():
            path = self._artifacts / key / name
            try:
                size = path.stat().st_size
                if size != file.bytes:
                    return f"'{key}': {name} has {size} bytes, not the {file.bytes} that were built"
                if digest(path) != file.digest:
                    return f"'{key}': {name} holds other bytes than were built"
            except FileNotFoundError:
                return f"'{key}': {name} is missing"
            except OSError as error:
                return f"'{key}': {name} cannot be read: {error.strerror}"
        return None

    # --- building ---

    @contextmanager
    def building(self, key: str) -> Iterator[Path]:
        """An empty folder to build in, held by this process alone across all servers; gone afterwards unless published.

        The lock falls with the process, however it ends; the next build sweeps up what a killed one left behind.
        """
        with self._locks.alone(key):
            folder = self._artifacts / f"{BUILDING}{key}"
            self._put_back(folder.with_name(folder.name + REPLACED))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Makes a finished build visible in one rename, everything on disk before it."""
        (folder / MANIFEST).write_bytes(encoded(manifest))
        for path in (*folder.iterdir(), folder):
            sync(path)
        target, replaced = self._artifacts / manifest.key, folder.with_name(folder.name + REPLACED)
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():  # broken, or built anew; who has loaded it keeps its files
            target.rename(replaced)
        folder.rename(target)
        sync(self._artifacts)
        shutil.rmtree(replaced, ignore_errors=True)

    def publish_checkpoint(self, folder: Path, target: Path) -> None:
        """The same for a checkpoint, which has no manifest; made again it is the same, whatever the time."""
        for path in folder.iterdir():
            os.utime(path, (0, 0))
        for path in (*folder.iterdir(), folder):
            sync(path)
        folder.rename(target)

    def _put_back(self, replaced: Path) -> None:
        """What a process that was killed between two renames had taken out of the way. Only with its lock."""
        target = self._artifacts / lock_of(replaced)
        if replaced.exists() and not target.exists():
            replaced.rename(target)

    def sweep(self) -> None:
        """Removes what killed builds have left."""
        for folder in (self._artifacts, self.cache / INTERMEDIATE):
            for leftover in folder.glob(f"{BUILDING}*"):
                self._sweep(leftover)

    def _sweep(self, path: Path) -> bool:
        """Removes it, unless somebody is making it: then False."""
        try:
            with self._locks.alone(lock_of(path), wait=False):
                if path.name.endswith(REPLACED):
                    self._put_back(path)
                path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            return False
        return not path.exists()

    # --- using and removing ---

    def use(self, key: str) -> IO[bytes]:
        """A handle that keeps `prune` away from an artifact, there or yet to be built, until every copy of it is
        closed: a worker inherits it. Waits while the artifact is being removed; so look for it afterwards."""
        return self._locks.shared(f"{key}{USE}")

    def discard_broken(self, key: str) -> str | None:
        """Verifies an artifact and removes it when it is not as it was built: then says why."""
        if self.verify(key) is None:
            return None
        with self._locks.alone(key):
            broken = self.verify(key)  # another server may have built it anew meanwhile
            if broken:
                self._remove(key)
            return broken

    def manifests(self) -> list[Manifest]:
        """Of every artifact."""
        return [found for path in paths(self._artifacts) if (found := self.manifest(path.name))]

    def entries(self) -> list[CacheEntry]:
        """Everything kept, the least recently used first."""
        found = []
        there = [(kind, path) for kind, folder in KINDS.items() for path in paths(self.cache / folder)]
        there += [(path.name.partition("-")[0], path) for path in paths(self.cache / INTERMEDIATE)]
        for kind, path in there:
            with suppress(FileNotFoundError):  # another process has removed it just now
                found.append(self._entry(kind, path))
        for path in self.cache.glob("*.sqlite"):
            found.append(CacheEntry(path.name, "database", path.stat().st_size, path.stat().st_mtime, False))
        return sorted(found, key=lambda entry: entry.used)

    def _entry(self, kind: str, path: Path) -> CacheEntry:
        changed, use = path.stat().st_mtime, f"{path.name}{USE}"
        if path.name.startswith("."):
            name, held = f"{path.parent.name}/{path.name}", self._locks.is_held(lock_of(path))
            return CacheEntry(name, "unfinished", bytes_in(path), changed, held)
        if kind != "artifact":
            return CacheEntry(path.name, kind, bytes_in(path), changed, self._locks.is_held(lock_of(path)))
        used, in_use = self._locks.last_shared(use) or changed, self._locks.is_held(use)
        return CacheEntry(path.name, kind, bytes_in(path), used, in_use, self.manifest(path.name))

    def remove(self, key: str) -> bool:
        """False where it is in use, or being built."""
        return self._try_remove(CacheEntry(key, "artifact", 0, 0.0, False))

    def discard(self, key: str) -> None:
        """Removes an artifact that nobody uses, but not what is known of it."""
        if manifest := self.manifest(key):
            self._discarded.mkdir(exist_ok=True)
            (self._discarded / key).write_bytes(msgspec.json.encode(manifest))
            self.remove(key)

    def prune(self, budget: int, dry_run: bool = False) -> Iterator[CacheEntry]:
        """Removes in the order of PRUNED, of each the least recently used first, until what is left is within the
        budget; nothing that is in use. Gives what it removed, or would remove."""
        entries = self.entries()
        left = sum(entry.bytes for entry in entries)
        for kinds in PRUNED:
            for entry in entries:
                if entry.kind not in kinds or entry.in_use:
                    continue
                broken = entry.kind == "unfinished" or (entry.kind == "artifact" and entry.manifest is None)
                if (broken or left > budget) and (dry_run or self._try_remove(entry)):
                    left -= entry.bytes
                    yield entry

    def _try_remove(self, entry: CacheEntry) -> bool:
        """False where somebody has begun to make or to use it."""
        if entry.kind == "unfinished":
            return self._sweep(self.cache / entry.name)
        if entry.kind in ("reference", "kv"):
            return self._sweep(self.cache / KINDS[entry.kind] / entry.name)
        if entry.kind != "artifact":
            return Store(self.cache, INTERMEDIATE).remove_unmarked(entry.name)
        use = f"{entry.name}{USE}"
        try:
            with self._locks.alone(use, wait=False) as is_there, self._locks.alone(entry.name, wait=False):
                if not is_there:
                    return False
                self._remove(entry.name)
                self._locks.remove(use)
        except BlockingIOError:
            return False
        return True

    def remove_unmarked(self, key: str) -> bool:
        """Of what has no lock that tells its use: False where somebody makes it, or holds it while it is read."""
        try:
            with self._locks.alone(key, wait=False):
                self._remove(key)
        except BlockingIOError:
            return False
        return True

    def _remove(self, key: str) -> None:
        """Whole: the rename takes it away in one step. Only with its lock."""
        folder, doomed = self._artifacts / key, self._artifacts / f"{BUILDING}{key}"
        shutil.rmtree(doomed, ignore_errors=True)
        if folder.exists():
            folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def amend(self, manifest: Manifest) -> None:
        """Gives an artifact that is there another manifest, whole at every moment."""
        folder = self.folder(manifest.key)
        written = folder / f".{MANIFEST}"
        with written.open("wb") as stream:
            stream.write(encoded(manifest))
            stream.flush()
            os.fsync(stream.fileno())
        written.rename(folder / MANIFEST)

    def folder(self, key: str) -> Path:
        return self._artifacts / key

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._artifacts).free


def encoded(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


def sync(path: Path) -> None:
    """A file's bytes, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def lock_of(path: Path) -> str:
    """What is held by who makes this."""
    key = path.name.removesuffix(REPLACED).removesuffix(".npz")
    for mark in UNFINISHED:
        key = key.removeprefix(mark)
    return f"reference-{key}" if path.parent.name == KINDS["reference"] else key


def paths(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def bytes_in(path: Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
