"""The cache's lock files: a right that one process has, or several share, and that falls with them however they end."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from enginehouse.optimize import shortage
from enginehouse.optimize.artifact import CannotBuild

NOW = fcntl.LOCK_EX | fcntl.LOCK_NB


class Locks:
    def __init__(self, cache: Path) -> None:
        self._cache, self._folder = cache, cache / "locks"

    @contextmanager
    def alone(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Held by this process alone across all servers; gives whether it was not removed meanwhile.

        Raises BlockingIOError instead of waiting for it.
        """
        with self._open(name) as handle:
            self._lock(handle, fcntl.LOCK_EX if wait else NOW)
            yield self._is_open(name, handle)

    def shared(self, name: str) -> IO[bytes]:
        """Held until every copy of the handle is closed: a child process inherits it. Waits for who holds it alone."""
        while True:
            try:
                handle = self._open(name)
            except CannotBuild as error:
                return self._of_read_only(name, error)
            self._lock(handle, fcntl.LOCK_SH)
            if self._is_open(name, handle):
                os.utime(handle.fileno())
                return handle
            handle.close()  # it was removed between opening and locking

    def _of_read_only(self, name: str, error: CannotBuild) -> IO[bytes]:
        """Where nothing can be written nothing can be removed either: a cache that is part of an image is served."""
        cause = error.__cause__
        if not (isinstance(cause, OSError) and cause.errno == errno.EROFS):
            raise error
        return Path(os.devnull).open("rb")

    def is_held(self, name: str) -> bool:
        """By any process, in any way; looking leaves no trace."""
        try:
            with (self._folder / name).open("rb") as handle:
                self._lock(handle, NOW)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def last_shared(self, name: str) -> float | None:
        """When, in seconds since the epoch; None if never."""
        try:
            return (self._folder / name).stat().st_mtime
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Only by who holds it alone."""
        (self._folder / name).unlink()

    def _open(self, name: str) -> IO[bytes]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return (self._folder / name).open("ab")
        except OSError as error:
            why = shortage.describe(error, "set cache_dir to a folder that can")
            raise CannotBuild(f"the cache '{self._cache}' cannot be written: {why}", environment=True) from error

    def _lock(self, handle: IO[bytes], how: int) -> None:
        try:
            fcntl.flock(handle, how)
        except BlockingIOError:
            raise
        except OSError as error:  # as some network disks answer
            why = shortage.describe(error, "set cache_dir to a folder that can, on a disk of this machine")
            raise CannotBuild(f"the cache '{self._cache}' cannot be locked: {why}", environment=True) from error

    def _is_open(self, name: str, handle: IO[bytes]) -> bool:
        """Whether the name still leads to what was opened by it."""
        try:
            return (self._folder / name).stat().st_ino == os.fstat(handle.fileno()).st_ino
        except FileNotFoundError:
            return False
