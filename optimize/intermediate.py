"""What is made on the way from a source to an artifact: folders of the cache, each whole or not there."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from enginehouse.optimize import store
from enginehouse.optimize.locks import Locks
from enginehouse.optimize.store import INTERMEDIATE, Store


def place(cache: Path, kind: str, *told: str) -> Path:
    """Where it lies. `kind`: as in the store's FOR_BUILDS and FOR_MODELS; `told`: all that its bytes depend on."""
    digest = hashlib.blake2b("\0".join(told).encode(), digest_size=10).hexdigest()
    return cache / INTERMEDIATE / f"{kind}-{digest}"


@contextmanager
def kept(folder: Path, write: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.exists) -> Iterator[Path]:
    """The folder is there within, as `write` makes it of an empty one, and nobody prunes it. Made by who asks first."""
    own = Store(folder.parents[1], INTERMEDIATE)
    with own.building(folder.name) as making:
        if not is_whole(folder):
            write(making)
            shutil.rmtree(folder, ignore_errors=True)
            own.publish_checkpoint(making, folder)
        touch(folder)
        yield folder


@contextmanager
def held(path: str, cache: Path) -> Iterator[None]:
    """Nobody prunes it within, if it is one of these."""
    folder = Path(path)
    if folder.parent != (cache / INTERMEDIATE).absolute():
        yield
        return
    with Locks(cache).shared(folder.name):
        yield


def touch(folder: Path) -> None:
    """It is used now: what was used longest ago is pruned first."""
    with suppress(OSError):  # a cache that nobody can write to is served from all the same
        os.utime(folder)


def remove(folder: Path) -> None:
    """Unless somebody uses it."""
    if folder.exists():
        Store(folder.parents[1], INTERMEDIATE).remove_unmarked(folder.name)


def check_free(folder: Path, needed: int) -> None:
    """Raises OSError where so many bytes are not free beside a folder."""
    store.check_free(needed, shutil.disk_usage(folder).free)
