"""`enginehouse pull`: what is fetched, what is said of it, and what other programs have here."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginehouse import config
from tests.hub import Hub, running
from tests.server.cli.test_cli import run

POCKET = Path(config.__file__).parent / "pocket"
FILES = {"Q2_K": 20, "Q8_0": 100, "F16": 300}  # MiB by precision
CONFIG = {"models": {"pocket": {"source": "lab/pocket"}}, "memory_budget": "400MiB"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    repositories = tmp_path / "repositories"
    shutil.copytree(POCKET, repositories / "lab" / "pocket", ignore=shutil.ignore_patterns("training", "*.py"))
    files = repositories / "lab" / "many"
    files.mkdir()
    for name, mib in FILES.items():
        with (files / f"many-{name}.gguf").open("wb") as file:
            file.truncate(mib << 20)
    with running(repositories) as hub:
        yield hub


class Pulled:
    def __init__(self, folder: Path, hub: Hub, *arguments: str, **environment: str) -> None:
        (folder / "enginehouse.yaml").write_text(json.dumps(CONFIG | {"cache_dir": str(folder / "cache")}))
        clean = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hub-cache"), "HF_HUB_DISABLE_XET": "1"}
        offline = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
        ended = run(folder, "pull", *arguments, **clean, **offline, HOME=str(folder), **environment)
        self.out, self.err, self.code = ended.stdout, ended.stderr, ended.returncode


def test_a_model_of_the_config_is_fetched_once_and_its_progress_is_told(tmp_path: Path, hub: Hub) -> None:
    pulled = Pulled(tmp_path, hub, "pocket")
    assert pulled.code == 0, pulled.err
    assert "'lab/pocket' is here: " in pulled.out
    assert "enginehouse chat pocket" in pulled.out
    assert "lab/pocket: 100 %" in pulled.err
    fetched = len(hub.served)
    assert Pulled(tmp_path, hub, "pocket").code == 0
    assert len(hub.served) == fetched


def test_of_several_files_all_are_shown_and_the_largest_that_fits_is_taken(tmp_path: Path, hub: Hub) -> None:
    pulled = Pulled(tmp_path, hub, "lab/many")
    assert pulled.code == 0, pulled.err
    assert hub.served == ["lab/many/many-Q8_0.gguf"]
    said = {name: next(line for line in pulled.out.splitlines() if f"many-{name}.gguf" in line) for name in FILES}
    assert ["too large" in line for line in said.values()] == [False, False, True]
    assert ["→" in line for line in said.values()] == [False, True, False]
    assert "source: lab/many/many-Q8_0.gguf" in pulled.out
    assert Pulled(tmp_path, hub, "lab/many", "--file", "many-Q2_K.gguf").code == 0
    assert hub.served[-1] == "lab/many/many-Q2_K.gguf"


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, hub: Hub) -> None:
    for arguments, said in (
        (["lab/none"], "the hub knows no 'lab/none'"),
        (["lab/many", "--file", "Q9.gguf"], "has no such file: 'Q9.gguf'"),
        ([], "name a model, or say --local"),
        (["nothing"], "source 'nothing' does not exist"),
    ):
        pulled = Pulled(tmp_path, hub, *arguments)
        assert pulled.code == 1
        assert pulled.err.count("\n") == 1
        assert said in pulled.err


def test_what_other_programs_have_is_found_and_linked_and_left_as_it_is(tmp_path: Path, hub: Hub) -> None:
    Pulled(tmp_path, hub, "pocket")
    studio = tmp_path / ".lmstudio" / "models" / "lab" / "small-GGUF"
    studio.mkdir(parents=True)
    (studio / "small-Q4_K_M.gguf").write_bytes(b"1234")
    ollama, digest = tmp_path / ".ollama" / "models", "sha256:" + "0a" * 32
    manifest = ollama / "manifests" / "somewhere" / "library" / "qwen3" / "0.6b"
    manifest.parent.mkdir(parents=True)
    weights = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 3}
    manifest.write_text(json.dumps({"layers": [{"mediaType": "text/plain", "digest": "x"}, weights]}))
    (manifest.parent / "broken").write_text("{")
    (ollama / "blobs").mkdir()
    blob = ollama / "blobs" / digest.replace(":", "-")
    blob.write_bytes(b"123")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob(".*/**/*"))

    found = {one["owner"]: one for one in json.loads(Pulled(tmp_path, hub, "--local", "--json").out)}

    assert (found["hub"]["source"], found["hub"]["kind"]) == ("lab/pocket", "checkpoint")
    assert found["LM Studio"]["source"] == str(studio)
    assert found["LM Studio"]["bytes"] == 4
    link = Path(found["Ollama"]["source"])
    assert (link.name, link.readlink(), found["Ollama"]["name"]) == ("qwen3-0.6b.gguf", blob, "qwen3:0.6b")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.glob(".*/**/*"))
    assert f"source: {link}" in Pulled(tmp_path, hub, "--local").out


def test_a_disk_without_room_is_said_before_anything_is_fetched(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (hub.folder / "lab" / "many" / "huge-Q4_K_M.gguf").open("wb") as file:
        file.truncate(1 << 42)  # holes take no room here
    pulled = Pulled(tmp_path, hub, "lab/many", "--file", "huge-Q4_K_M.gguf")
    assert pulled.code == 1
    assert "takes 4194304 MiB and" in pulled.err
    assert hub.served == []
