"""Sequences' KV on the disk: what outlives the worker that computed it. A file each, whole or not at all, that nobody
but the user can read."""

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from enginehouse.runtimes.contract import Load
from enginehouse.runtimes.decoding import kv_cache

if TYPE_CHECKING:
    import numpy as np

ENDING, PART = ".kv", ".part"  # whole; being written by the process whose number stands before


class Header(msgspec.Struct, frozen=True):
    """The first line; after it tokens (int32), the sequence's state, and what was kept of it on the way."""

    tokens: int
    state: int  # bytes
    kept: list[tuple[int, int]]  # lengths, and bytes of each
    digest: str = ""  # of these numbers and of all that follows


class Saved(msgspec.Struct, frozen=True):
    state: memoryview
    kept: list[tuple[int, memoryview]]  # by length


class Held(msgspec.Struct, frozen=True):
    """What a file holds, without the state."""

    tokens: "np.ndarray[Any, np.dtype[np.int32]]"
    kept: list[int]  # lengths

    def usable(self, tokens: "np.ndarray[Any, np.dtype[np.int32]]", whole: bool) -> int:
        common = kv_cache.common_prefix(self.tokens, tokens)
        if not whole or common == len(self.tokens):
            return common
        return max((length for length in self.kept if length <= common), default=0)


class KvDisk:
    def __init__(self, folder: Path, most_bytes: int) -> None:
        """`folder`: of one artifact as one engine holds it; `most_bytes`: of all such folders beside it together."""
        self._folder, self._most = folder, most_bytes
        self._held: dict[Path, Held] = {}
        for part in folder.glob(f"*{PART}"):
            with suppress(OSError, ValueError, IndexError):  # a name that is none of ours stays
                if not psutil.pid_exists(int(part.suffixes[-2][1:])):
                    part.unlink(missing_ok=True)
        for file in folder.glob(f"*{ENDING}"):
            with suppress(OSError, ValueError, msgspec.DecodeError):
                self._held[file] = held_in(file)

    def best(self, tokens: list[int], whole: bool) -> tuple[int, Path | None]:
        """How much of a prompt's beginning can be had of a file at most, and which one. `whole`: only all of it can be
        had, or what was kept on the way."""
        import numpy as np

        ids = np.asarray(tokens, np.int32)
        lengths = {file: held.usable(ids, whole) for file, held in list(self._held.items())}
        file = max(lengths, key=lambda file: lengths[file], default=None)
        return (lengths[file], file) if file else (0, None)

    def take(self, file: Path) -> tuple[list[int], Saved] | None:
        """None for what is damaged or gone, which is then forgotten."""
        try:
            with file.open("rb") as stream:
                header = msgspec.json.decode(stream.readline(), type=Header)
                rest = memoryview(stream.read())
            if digest(header, rest) != header.digest:
                raise ValueError("it has changed on the disk")
            os.utime(file)
        except (OSError, ValueError, msgspec.DecodeError) as error:
            print(f"'{file}' is not used: {error}", file=sys.stderr, flush=True)
            self._held.pop(file, None)
            with suppress(OSError):
                file.unlink(missing_ok=True)
            return None
        import numpy as np

        tokens, at = np.frombuffer(rest, np.int32, header.tokens).tolist(), 4 * header.tokens
        state, at = rest[at : at + header.state], at + header.state
        kept = []
        for length, size in header.kept:
            kept.append((length, rest[at : at + size]))
            at += size
        return tokens, Saved(state, kept)

    def put(self, tokens: list[int], saved: Saved) -> None:
        """In place of what it goes on from. Raises OSError."""
        import numpy as np

        ids = np.asarray(tokens, np.int32)
        parts = [memoryview(ids.tobytes()), saved.state, *(state for _, state in saved.kept)]
        header = Header(len(tokens), len(saved.state), [(length, len(state)) for length, state in saved.kept])
        header = msgspec.structs.replace(header, digest=digest(header, *parts))
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._make_room(sum(map(len, parts)))
        file = self._folder / f"{hashlib.blake2b(ids.tobytes(), digest_size=10).hexdigest()}{ENDING}"
        part = file.with_suffix(f".{os.getpid()}{PART}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                stream.write(msgspec.json.encode(header) + b"\n")
                for one in parts:
                    stream.write(one)
                stream.flush()
                os.fsync(stream.fileno())
            part.rename(file)
        finally:
            part.unlink(missing_ok=True)
        for other, held in list(self._held.items()):
            if other != file and held.usable(ids, whole=False) == len(held.tokens):
                del self._held[other]
                other.unlink(missing_ok=True)
        self._held[file] = Held(ids, [length for length, _ in saved.kept])

    def _make_room(self, needed: int) -> None:
        """What was used longest ago goes, whichever model's it is."""
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.parent.rglob(f"*{ENDING}")]
        left = sum(size for _, size, _ in files) + needed
        for _, size, path in sorted(files):
            if left <= self._most:
                return
            path.unlink(missing_ok=True)
            self._held.pop(path, None)
            left -= size
        if left > self._most:
            raise OSError(f"{needed >> 20} MiB are more than kv_disk allows")


def held_in(file: Path) -> Held:
    import numpy as np

    with file.open("rb") as stream:
        header = msgspec.json.decode(stream.readline(), type=Header)
        tokens = np.frombuffer(stream.read(4 * header.tokens), np.int32)
    if len(tokens) != header.tokens:
        raise ValueError("it is cut off")
    return Held(tokens, [length for length, _ in header.kept])


def digest(header: Header, *parts: memoryview) -> str:
    numbers = msgspec.structs.replace(header, digest="")
    hashed = hashlib.blake2b(msgspec.json.encode(numbers), digest_size=16)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def kv_disk_of(load: Load) -> KvDisk | None:
    return KvDisk(Path(load.kv_folder), load.kv_bytes) if load.kv_folder and load.kv_bytes else None
