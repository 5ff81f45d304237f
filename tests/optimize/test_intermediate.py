"""What is made on the way to an artifact: once, whole or not there, kept from those who prune while it is used."""

import os
from pathlib import Path

import pytest

from enginehouse.optimize import intermediate
from enginehouse.optimize.store import Store


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(b"1234")


def made(cache: Path, kind: str, name: str, used: float = 1.0) -> Path:
    with intermediate.kept(intermediate.place(cache, kind, name), write) as folder:
        assert (folder / "weights").read_bytes() == b"1234"
    os.utime(folder, (used, used))
    return folder


def names(cache: Path) -> set[str]:
    return {path.name for path in (cache / "intermediate").iterdir()}


def test_it_is_made_by_who_asks_first_and_used_by_who_comes_then(tmp_path: Path) -> None:
    folder = made(tmp_path, "exported", "one")
    again: list[Path] = []
    with intermediate.kept(folder, again.append) as same:
        assert same == folder
    assert again == []
    (entry,) = Store(tmp_path).entries()
    assert (entry.name, entry.kind, entry.bytes, entry.in_use) == (folder.name, "exported", 4, False)
    assert entry.used > 1.0


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise OSError("no room")

    with (
        pytest.raises(OSError, match="no room"),
        intermediate.kept(intermediate.place(tmp_path, "widened", "one"), fail),
    ):
        pass
    assert names(tmp_path) == set()


def test_what_a_killed_build_has_left_is_swept_up_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "intermediate" / ".building-exported-dead"
    left.mkdir(parents=True)
    Store(tmp_path).sweep()
    assert names(tmp_path) == set()


def test_what_only_builds_want_is_pruned_first_and_of_each_kind_what_was_used_longest_ago(tmp_path: Path) -> None:
    served = made(tmp_path, "merged", "one", used=1.0), made(tmp_path, "widened", "one", used=2.0)
    built = made(tmp_path, "exported", "one", used=4.0), made(tmp_path, "dequantized", "one", used=3.0)
    removed = [entry.name for entry in Store(tmp_path).prune(0)]
    assert removed == [folder.name for folder in (*reversed(built), *served)]
    assert names(tmp_path) == set()


def test_what_is_used_is_neither_pruned_nor_removed(tmp_path: Path) -> None:
    export, source = made(tmp_path, "exported", "one"), made(tmp_path, "widened", "one")
    with intermediate.kept(export, write), intermediate.held(str(source), tmp_path):
        assert all(entry.in_use for entry in Store(tmp_path).entries())
        intermediate.remove(export)
        assert list(Store(tmp_path).prune(0)) == []
        assert names(tmp_path) >= {export.name, source.name}
    intermediate.remove(export)
    assert names(tmp_path) == {source.name}
