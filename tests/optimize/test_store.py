"""The store can be trusted: what changed is never served, what is in use is never removed, what is left is swept up."""

import fcntl
import functools
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from enginehouse.optimize.store import Store
from tests.optimize.test_prepare import artifacts
from tests.optimize.test_prepare import build as build_and_compare
from tests.serving import Served, serve

POCKET = {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "int8"}
build = functools.partial(build_and_compare, gate=False)  # nothing in the store but artifacts
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def ask(served: Served) -> str:
    reply = served.client.chat.completions.create(model="pocket", messages=QUESTION, temperature=0)
    return str(reply.choices[0].message.content)


def flip(file: Path) -> None:
    """One byte in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def used(store: Store, key: str, seconds: float) -> None:
    """As if it had been used last at that time."""
    with store.use(key) as handle:
        os.utime(handle.fileno(), (seconds, seconds))


def keys(store: Store) -> set[str]:
    return {entry.name for entry in store.entries() if entry.kind == "artifact"}


def pruned(store: Store, budget: int = 0) -> list[str]:
    return [entry.name for entry in store.prune(budget) if entry.kind == "artifact"]


# --- verified ---


def test_a_file_that_is_missing_or_of_another_size_or_other_bytes_is_named(tmp_path: Path, checkpoint: Path) -> None:
    artifact, store = build(checkpoint, tmp_path), Store(tmp_path)
    file = Path(artifact.path)
    assert store.verify(artifact.key) is None
    flip(file)
    assert store.verify(artifact.key) == f"'{artifact.key}': model.gguf holds other bytes than were built"
    file.write_bytes(file.read_bytes()[:-1])
    size = file.stat().st_size
    assert (
        store.verify(artifact.key)
        == f"'{artifact.key}': model.gguf has {size} bytes, not the {size + 1} that were built"
    )
    file.unlink()
    assert store.verify(artifact.key) == f"'{artifact.key}': model.gguf is missing"
    (file.parent / "manifest.json").write_text("{")
    assert store.verify(artifact.key) == f"'{artifact.key}' has no manifest.json that can be read"


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flipped", "missing"])
def test_a_changed_artifact_is_built_anew_and_never_served(tmp_path: Path, damage: Any) -> None:
    with serve(tmp_path, {"pocket": POCKET}) as served:
        expected = ask(served)
    (file,) = tmp_path.glob("cache/artifacts/*/model.gguf")
    damage(file)
    store = Store(tmp_path / "cache")
    assert store.verify(file.parent.name)
    with serve(tmp_path, {"pocket": POCKET}) as served:
        assert ask(served) == expected
        assert "model.gguf" in served.wait_for("it is built anew")
    assert store.verify(file.parent.name) is None
    assert artifacts(tmp_path / "cache") == [file.parent.name]


def test_an_artifact_that_another_server_has_built_anew_meanwhile_is_not_removed_again(
    tmp_path: Path, checkpoint: Path
) -> None:
    artifact, store = build(checkpoint, tmp_path), Store(tmp_path)
    whole = Path(artifact.path).read_bytes()
    flip(Path(artifact.path))
    with (tmp_path / "locks" / artifact.key).open("w") as building:
        fcntl.flock(building, fcntl.LOCK_EX)
        said: list[str | None] = []
        discarding = threading.Thread(target=lambda: said.append(store.discard_broken(artifact.key)))
        discarding.start()
        Path(artifact.path).write_bytes(whole)
    discarding.join(30)
    assert said == [None]
    assert store.verify(artifact.key) is None


# --- pruned ---


def test_the_least_recently_used_go_until_the_rest_fits(tmp_path: Path, checkpoint: Path) -> None:
    store = Store(tmp_path)
    old, recent, newest = (build(checkpoint, tmp_path, precision).key for precision in ("Q8_0", "Q4_K_M", "F16"))
    for age, key in enumerate((newest, recent, old)):
        used(store, key, 1e9 - age)
    sizes = {entry.name: entry.bytes for entry in store.entries()}
    assert [entry.name for entry in store.prune(sizes[newest], dry_run=True)] == [old, recent]
    assert keys(store) == {old, recent, newest}
    assert [entry.name for entry in store.prune(sizes[newest] + sizes[recent])] == [old]
    assert keys(store) == {recent, newest}
    assert {entry.name for entry in store.prune(0)} == {recent, newest}
    assert not list((tmp_path / "artifacts").iterdir())


def test_a_build_anew_replaces_what_was_there(tmp_path: Path, checkpoint: Path) -> None:
    artifact, store = build(checkpoint, tmp_path), Store(tmp_path)
    before = Path(artifact.path).stat().st_mtime_ns
    assert build(checkpoint, tmp_path, anew=True) == artifact
    assert Path(artifact.path).stat().st_mtime_ns != before
    assert artifacts(tmp_path) == [artifact.key]
    assert store.verify(artifact.key) is None


def test_what_a_build_anew_had_taken_away_comes_back_if_it_is_killed_before_its_own_is_there(
    tmp_path: Path, checkpoint: Path
) -> None:
    artifact, store = build(checkpoint, tmp_path), Store(tmp_path)
    folder, building = store.folder(artifact.key), tmp_path / "artifacts" / f".building-{artifact.key}"
    for come_back in (store.sweep, lambda: build(checkpoint, tmp_path)):
        before = Path(artifact.path).stat().st_mtime_ns
        folder.rename(f"{building}.old")
        building.mkdir()
        come_back()
        assert artifacts(tmp_path) == [artifact.key]
        assert store.verify(artifact.key) is None
        assert Path(artifact.path).stat().st_mtime_ns == before, "built again"


def test_a_cache_that_nobody_can_write_to_is_served_from(tmp_path: Path) -> None:
    with serve(tmp_path, {"pocket": POCKET}) as served:
        expected = ask(served)
        cache = served.cache
    mounted = subprocess.run(["mount", "--bind", str(cache), str(cache)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(cache)], check=True)
        with serve(tmp_path, {"pocket": POCKET}) as served:
            assert ask(served) == expected
            assert not any("building" in line for line in served.log)
    finally:
        subprocess.run(["umount", "--lazy", str(cache)], check=True)


def test_leftovers_of_killed_builds_go_and_those_of_running_ones_stay(tmp_path: Path, checkpoint: Path) -> None:
    artifact, store = build(checkpoint, tmp_path), Store(tmp_path)
    for name in ("artifacts/.building-gguf-dead", "artifacts/.building-gguf-alive", "references/.making-dead"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "half").write_bytes(b"half")
    with (tmp_path / "locks" / "gguf-alive").open("w") as building:
        fcntl.flock(building, fcntl.LOCK_EX)
        removed = {entry.name for entry in store.prune(1 << 40)}
    assert removed == {"artifacts/.building-gguf-dead", "references/.making-dead"}
    assert artifacts(tmp_path) == [".building-gguf-alive", artifact.key]
    build(checkpoint, tmp_path, "Q4_K_M")
    assert ".building-gguf-alive" not in artifacts(tmp_path), "the next build sweeps it up"


def test_references_go_last(tmp_path: Path, checkpoint: Path) -> None:
    store = Store(tmp_path)
    artifact = build(checkpoint, tmp_path)
    (tmp_path / "references").mkdir()
    for name, seconds in (("new.npz", 2.0), ("old.npz", 1.0)):
        (tmp_path / "references" / name).write_bytes(b"1234")
        os.utime(tmp_path / "references" / name, (seconds, seconds))
    assert [entry.name for entry in store.prune(4)] == [artifact.key, "old.npz"]
    assert [entry.name for entry in store.entries()] == ["new.npz"]


def test_what_any_server_has_loaded_is_not_pruned(tmp_path: Path) -> None:
    """Two servers on one cache, each with a model of its own loaded, and an artifact that nobody has loaded."""
    store = Store(tmp_path / "cache")
    unused = build("builtin:pocket", tmp_path / "cache", "F16").key
    with serve(tmp_path, {"pocket": POCKET}) as first:
        with serve(tmp_path, {"pocket": POCKET | {"precision": "int4"}}) as second:
            expected = ask(first), ask(second)
            assert {entry.name for entry in store.entries() if entry.in_use} == keys(store) - {unused}
            assert pruned(store) == [unused]
            assert (ask(first), ask(second)) == expected
            second.process.kill()
            second.process.wait()
            for line in second.log:
                assert "it is built anew" not in line
            removed: list[str] = []
            while not removed:  # the worker ends with its server, and its lock with it
                removed = pruned(store)
            assert len(removed) == 1
        assert len(keys(store)) == 1
        assert ask(first) == expected[0]


def test_a_server_that_loads_while_artifacts_are_pruned_builds_anew_and_answers(tmp_path: Path) -> None:
    store, ended = Store(tmp_path / "cache"), threading.Event()
    removed: list[str] = []

    def prune() -> None:
        while not ended.is_set():
            removed.extend(pruned(store))
            time.sleep(0.02)  # else it takes the processor from what is built

    with serve(tmp_path, {"pocket": POCKET | {"keep_alive": "0s"}}) as served:
        expected = ask(served)
        pruning = threading.Thread(target=prune)
        pruning.start()
        try:
            assert [ask(served) for _ in range(2)] == [expected] * 2
        finally:
            ended.set()
            pruning.join()
    assert removed


def test_what_a_server_has_used_is_known_by_when(tmp_path: Path) -> None:
    key, store = build("builtin:pocket", tmp_path / "cache").key, Store(tmp_path / "cache")
    used(store, key, 1e9)
    with serve(tmp_path, {"pocket": POCKET}) as served:
        ask(served)
        (entry,) = (entry for entry in store.entries() if entry.kind == "artifact")
        assert (entry.name, entry.in_use) == (key, True)
        assert entry.used > 1e9
