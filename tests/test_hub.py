"""Hub ids as sources: the real huggingface_hub, in the real build process, against a stand-in on this machine."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimize.prepare import locate, prepare
from optimize.recipe import CannotBuild, Source
from optimize.toolchains import toolchains
from tests.hub import COMMIT, Hub, running


@pytest.fixture
def hub(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    shutil.copytree(checkpoint, tmp_path / "repositories" / "lab" / "tiny")
    (tmp_path / "repositories" / "lab" / "tiny" / "pytorch_model.bin").write_bytes(b"a pickle nobody asked for")
    with running(tmp_path / "repositories") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield hub


def find(source: str, revision: str | None = None) -> Source:
    return asyncio.run(locate(source, revision, lambda stage, done: None))


def test_a_hub_id_is_fetched_once_and_built(hub: Hub, tmp_path: Path) -> None:
    source = find("lab/tiny")
    assert (source.id, source.kind, source.architecture) == ("lab/tiny", "checkpoint", "Qwen3ForCausalLM")
    fetched = len(hub.served)
    assert find("lab/tiny") == source
    assert len(hub.served) == fetched
    gguf = toolchains()["gguf"]
    artifact = asyncio.run(prepare(source, gguf, "Q8_0", tmp_path / "cache", lambda stage, done: None))
    assert Path(artifact.path).stat().st_size > 0


def test_no_pickle_is_ever_fetched(hub: Hub) -> None:
    find("lab/tiny")
    assert "lab/tiny/model.safetensors" in hub.served
    assert not any(name.endswith(".bin") for name in hub.served)


def test_what_is_cached_is_used_when_the_hub_is_out_of_reach(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find("lab/tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert find("lab/tiny") == source
    with pytest.raises(CannotBuild, match=r"'lab/other' is not cached and the hub cannot be reached"):
        find("lab/other")


def test_a_revision_is_honoured(hub: Hub) -> None:
    assert find("lab/tiny", COMMIT).kind == "checkpoint"
    with pytest.raises(CannotBuild, match="no revision 'v9'"):
        find("lab/tiny", "v9")


def test_a_gguf_file_of_a_repository_is_a_source(hub: Hub, tmp_path: Path) -> None:
    gguf = toolchains()["gguf"]
    artifact = asyncio.run(prepare(find("lab/tiny"), gguf, "Q8_0", tmp_path / "cache", lambda stage, done: None))
    ready = hub.folder / "lab" / "ready"
    ready.mkdir()
    shutil.copy(artifact.path, ready / "tiny-Q8_0.gguf")
    assert find("lab/ready/tiny-Q8_0.gguf").kind == "gguf"
    with pytest.raises(CannotBuild, match=r"name one: lab/ready/FILE\.gguf"):
        find("lab/ready")
    with pytest.raises(CannotBuild, match="no such file"):
        find("lab/ready/other.gguf")


def test_an_unknown_and_a_gated_repository_are_refused_with_the_remedy(hub: Hub) -> None:
    with pytest.raises(CannotBuild, match=r"knows no 'lab/none', or it is private.*HF_TOKEN"):
        find("lab/none")
    hub.gated.add("lab/tiny")
    with pytest.raises(CannotBuild, match=r"'lab/tiny' is gated: accept its licence on the hub and set HF_TOKEN"):
        find("lab/tiny")
