"""Artifacts: built once, whole or not at all, whoever is killed on the way."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from enginehouse.config.schema import Optimize
from enginehouse.optimize.artifact import Artifact, CannotBuild, Manifest, Recipe, Source
from enginehouse.optimize.build import Build
from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains import toolchains

GGUF = toolchains()["gguf"]


def quiet(stage: str, fraction: float) -> None: ...


def build(source: Path | str, cache: Path, precision: str = "Q8_0", anew: bool = False, gate: bool = True) -> Artifact:
    async def steps() -> Artifact:
        return await prepare(
            await locate(str(source), None, quiet), GGUF, precision, cache, quiet, Optimize() if gate else None, anew
        )

    return asyncio.run(steps())


def artifacts(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "artifacts").iterdir())


def test_an_artifact_is_built_once_and_its_manifest_says_how(tmp_path: Path, checkpoint: Path) -> None:
    artifact = build(checkpoint, tmp_path)
    manifest = msgspec.json.decode((Path(artifact.path).parent / "manifest.json").read_bytes(), type=Manifest)
    assert manifest.recipe.precision == "Q8_0"
    assert manifest.source.id == str(checkpoint)
    assert {name: file.bytes for name, file in manifest.files.items()} == {
        "model.gguf": Path(artifact.path).stat().st_size
    }
    assert {"convert", "quantize", "check"} <= manifest.seconds.keys()
    before = Path(artifact.path).stat().st_mtime_ns
    assert build(checkpoint, tmp_path) == artifact
    assert Path(artifact.path).stat().st_mtime_ns == before


def test_progress_is_told_stage_by_stage(tmp_path: Path, checkpoint: Path) -> None:
    seen: list[tuple[str, float]] = []

    async def steps() -> None:
        source = await locate(str(checkpoint), None, quiet)
        await prepare(source, GGUF, "Q8_0", tmp_path, lambda stage, fraction: seen.append((stage, fraction)))

    asyncio.run(steps())
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages == ["convert", "quantize", "check"]
    assert all(0 <= fraction <= 1 for _, fraction in seen)


def test_a_changed_source_is_built_anew(tmp_path: Path, checkpoint: Path) -> None:
    own = Path(shutil.copytree(checkpoint, tmp_path / "own"))
    first = build(own, tmp_path / "cache")
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert build(own, tmp_path / "cache").path != first.path


def test_many_callers_in_one_process_and_in_another_lead_to_one_build(tmp_path: Path, checkpoint: Path) -> None:
    async def crowd() -> list[Artifact]:
        source = await locate(str(checkpoint), None, quiet)
        return await asyncio.gather(*(prepare(source, GGUF, "Q4_K_M", tmp_path, quiet) for _ in range(3)))

    program = (
        "from pathlib import Path; from tests.optimize.test_prepare import build; "
        f"print(build({str(checkpoint)!r}, Path({str(tmp_path)!r}), 'Q4_K_M').path)"
    )
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    mine = asyncio.run(crowd())
    theirs, _ = other.communicate(timeout=120)
    assert {artifact.path for artifact in mine} == {theirs.strip()}
    assert len(artifacts(tmp_path)) == 1


def order(checkpoint: Path, cache: Path) -> bytes:
    async def source() -> Source:
        return await locate(str(checkpoint), None, quiet)

    found = asyncio.run(source())
    recipe = Recipe("gguf", "Q4_K_M", found.fingerprint, GGUF.versions())
    return msgspec.json.encode(Build(found, recipe, str(cache))) + b"\n"


def start(order: bytes) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "enginehouse.optimize.build"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin
    child.stdin.write(order)
    child.stdin.flush()
    return child


def test_a_build_killed_in_the_middle_leaves_nothing_that_is_served_and_the_next_one_succeeds(
    tmp_path: Path, checkpoint: Path
) -> None:
    child = start(order(checkpoint, tmp_path))
    assert child.stdout
    child.stdout.readline()  # it has begun to convert
    child.kill()
    child.wait()
    child.stdout.close()
    assert all(name.startswith(".building-") for name in artifacts(tmp_path))
    artifact = build(checkpoint, tmp_path, "Q4_K_M")
    assert artifacts(tmp_path) == [Path(artifact.path).parent.name]


def test_a_build_ends_with_the_process_that_asked_for_it(tmp_path: Path, checkpoint: Path) -> None:
    child = start(order(checkpoint, tmp_path))
    assert child.stdout and child.stdin
    child.stdout.readline()
    child.stdin.close()
    child.wait(timeout=30)
    child.stdout.close()


def test_a_damaged_source_leaves_nothing(tmp_path: Path, checkpoint: Path) -> None:
    own = Path(shutil.copytree(checkpoint, tmp_path / "own"))
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CannotBuild, match=r"model\.safetensors"):
        build(own, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_build_that_would_not_fit_is_refused_before_it_starts(tmp_path: Path, checkpoint: Path) -> None:
    async def steps() -> None:
        source = msgspec.structs.replace(await locate(str(checkpoint), None, quiet), parameters=10**15)
        await prepare(source, GGUF, "Q8_0", tmp_path, quiet)

    with pytest.raises(CannotBuild, match=r"no room on the disk.*MiB are needed.*set cache_dir"):
        asyncio.run(steps())
    assert artifacts(tmp_path) == []


def test_a_build_that_memory_is_too_small_for_is_refused_before_it_starts(tmp_path: Path, checkpoint: Path) -> None:
    openvino = toolchains()["openvino"]
    if reason := openvino.unavailable():
        pytest.skip(reason)
    needed = psutil.virtual_memory().total + (1 << 30)

    async def steps() -> None:  # of all toolchains the one that takes most memory for its disk
        source = msgspec.structs.replace(await locate(str(checkpoint), None, quiet), parameters=int(needed / 5.5))
        await prepare(source, openvino, "F32", tmp_path, quiet)

    with pytest.raises(
        CannotBuild, match=r"^building openvino F32 takes about \d+ MiB of memory, \d+ MiB are free; "
    ) as caught:
        asyncio.run(steps())
    assert caught.value.environment
    assert artifacts(tmp_path) == []


def test_a_build_that_is_given_up_leaves_nothing(tmp_path: Path, checkpoint: Path) -> None:
    async def steps() -> None:
        begun = asyncio.Event()
        source = await locate(str(checkpoint), None, quiet)
        building = asyncio.create_task(prepare(source, GGUF, "Q4_K_M", tmp_path, lambda stage, done: begun.set()))
        await begun.wait()
        building.cancel()
        await asyncio.wait([building])
        assert building.cancelled()

    asyncio.run(steps())
    assert artifacts(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, which a test may fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """With a file that leaves no page, whatever a build writes meanwhile."""
    ballast, size = folder / "ballast", 0
    with ballast.open("wb") as stream:
        for piece in (1 << 26, 1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    os.posix_fallocate(stream.fileno(), size, piece)
                    size += piece
    return ballast


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("gguf", "quantize"),
        ("gguf", "check"),  # after it the artifact is published
        ("mlx", "quantize"),
        ("mlx", "check"),
        ("openvino", "convert"),
        ("openvino", "quantize"),
        ("onnx", "quantize"),
    ],
)
def test_a_disk_that_is_full_at_any_stage_ends_the_build_with_a_sentence_and_leaves_nothing(
    small_disk: Path, name: str, stage: str
) -> None:
    toolchain = toolchains()[name]
    if reason := toolchain.unavailable():
        pytest.skip(reason)
    ballast: list[Path] = []

    def fill_at(at: str, done: float) -> None:
        if at == stage and not ballast:
            child = max(psutil.Process().children(), key=lambda process: process.create_time())
            building = [child, *child.children(recursive=True)]
            for process in building:  # or it would be done before the disk is full
                process.suspend()
            ballast.append(fill(small_disk))
            for process in building:
                process.resume()

    async def steps(report: Callable[[str, float], None]) -> Artifact:
        source = await locate("builtin:pocket", None, quiet)
        return await prepare(source, toolchain, toolchain.precisions["int4"], small_disk, report)

    with pytest.raises(CannotBuild, match=f"no room on the disk of the cache '{small_disk}'.*set cache_dir") as caught:
        asyncio.run(steps(fill_at))
    assert caught.value.environment
    assert artifacts(small_disk) == []
    ballast[0].unlink()
    if name == "gguf":  # the others take their time
        assert Path(asyncio.run(steps(quiet)).path).exists()


def test_a_gguf_file_is_a_source(tmp_path: Path, checkpoint: Path) -> None:
    file = build(checkpoint, tmp_path, "F16").path
    source = asyncio.run(locate(file, None, quiet))
    assert (source.kind, source.architecture, source.context_length) == ("gguf", "qwen3", 256)
    assert Path(build(file, tmp_path, "Q4_K_M").path).stat().st_size < Path(file).stat().st_size


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/nowhere/at/all", "does not exist; a source is a folder"),
        ("builtin:nothing", "unknown source 'builtin:nothing'; have: builtin:echo, builtin:pocket"),
        (__file__, "is a file, but not .gguf"),
    ],
)
def test_a_source_that_is_none_is_refused_with_what_would_be_one(source: str, words: str) -> None:
    with pytest.raises(CannotBuild, match=words):
        asyncio.run(locate(source, None, quiet))


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CannotBuild, match="never a pickle"):
        asyncio.run(locate(str(tmp_path), None, quiet))
