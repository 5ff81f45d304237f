"""What a prompt's KV is kept in: whole or not there, nobody's but its user's, and never more than it may be."""

import os
import stat
from pathlib import Path

import pytest

from enginehouse.runtimes.decoding.kv_disk import ENDING, KvDisk, Saved

TOKENS = list(range(100, 200))


def saved(size: int = 1000, fill: int = 7) -> Saved:
    state = memoryview(bytes([fill]) * size)
    return Saved(state, [(40, memoryview(b"forty")), (90, memoryview(b"ninety"))])


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_what_was_put_there_is_found_by_another_process_and_taken_whole(tmp_path: Path) -> None:
    KvDisk(tmp_path / "a", 1 << 20).put(TOKENS, saved())
    disk = KvDisk(tmp_path / "a", 1 << 20)
    assert KvDisk(tmp_path / "b", 1 << 20).best(TOKENS, whole=False) == (0, None)
    length, file = disk.best([*TOKENS[:50], 1, 2], whole=False)
    assert (length, disk.best([*TOKENS[:50], 1, 2], whole=True)[0]) == (50, 40)
    assert file
    taken = disk.take(file)
    assert taken == (TOKENS, saved())


def test_its_user_alone_can_read_it(tmp_path: Path) -> None:
    KvDisk(tmp_path / "a", 1 << 20).put(TOKENS, saved())
    (file,) = (tmp_path / "a").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "emptied", "gone", "foreign"])
def test_what_is_damaged_is_named_and_forgotten(tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    disk = KvDisk(tmp_path / "a", 1 << 20)
    disk.put(TOKENS, saved())
    (file,) = (tmp_path / "a").iterdir()
    whole = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(whole[:-1])
        case "flipped":
            file.write_bytes(whole[:-600] + b"\x08" + whole[-599:])
        case "header":
            file.write_bytes(whole.replace(b'"tokens":100', b'"tokens":900', 1))
        case "emptied":
            file.write_bytes(b"")
        case "foreign":
            file.write_bytes(b"{}\nsomething")
        case "gone":
            file.unlink()
    assert disk.take(file) is None
    assert f"'{file}' is not used" in capfd.readouterr().err
    assert disk.best(TOKENS, whole=False) == (0, None)
    assert files(tmp_path / "a") == []
    file.write_bytes(whole[:10])
    assert KvDisk(tmp_path / "a", 1 << 20).best(TOKENS, whole=False) == (0, None)  # another process sees it first


def test_what_goes_on_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    disk = KvDisk(tmp_path / "a", 1 << 20)
    for tokens in (TOKENS[:50], [*TOKENS[:20], 1, 2, 3], TOKENS):
        disk.put(tokens, saved())
    assert len(files(tmp_path / "a")) == 2
    assert disk.best(TOKENS[:50], whole=False)[0] == 50


def test_all_models_together_take_no_more_than_they_may_and_the_oldest_goes_first(tmp_path: Path) -> None:
    for age, name in enumerate("abc"):
        KvDisk(tmp_path / name, 10_000).put([age, *TOKENS], saved(3000))
        os.utime(next((tmp_path / name).iterdir()), (1000 + age, 1000 + age))
    KvDisk(tmp_path / "d", 10_000).put([9, *TOKENS], saved(3000))
    assert [file.parent.name for file in files(tmp_path) if file.suffix == ENDING] == ["c", "d"]
    with pytest.raises(OSError, match="more than kv_disk allows"):
        KvDisk(tmp_path / "e", 10_000).put(TOKENS, saved(20_000))
    assert not files(tmp_path / "e")


def test_what_a_killed_process_has_left_is_swept_up_and_what_another_writes_is_not(tmp_path: Path) -> None:
    gone, there = (tmp_path / f"abc.{pid}.part" for pid in (2**22 + 1, os.getpid()))
    for part in (gone, there):
        part.write_bytes(b"half")
    KvDisk(tmp_path, 1 << 20)
    assert files(tmp_path) == [there]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    disk = KvDisk(tmp_path / "a", 1 << 20)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk.put(TOKENS, saved())
    assert files(tmp_path / "a") == []
    assert disk.best(TOKENS, whole=False) == (0, None)
