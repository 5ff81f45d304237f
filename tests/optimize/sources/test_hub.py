"""Hub ids as sources: the real huggingface_hub, in the real build process, against a stand-in on this machine."""

import asyncio
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import httpx
import msgspec
import pytest

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.build import Fetch
from enginehouse.optimize.prepare import adapt, locate, prepare
from enginehouse.optimize.toolchains import toolchains
from tests.hub import COMMIT, Hub, running
from tests.serving import serve


@pytest.fixture
def hub(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    shutil.copytree(checkpoint, tmp_path / "repositories" / "lab" / "tiny")
    (tmp_path / "repositories" / "lab" / "tiny" / "pytorch_model.bin").write_bytes(b"a pickle nobody asked for")
    with running(tmp_path / "repositories") as hub:
        for offline in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):  # who compares with transformers here sets them
            monkeypatch.delenv(offline, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield hub


def find(source: str, revision: str | None = None, precision: str = "auto") -> Source:
    return asyncio.run(locate(source, revision, lambda stage, done: None, precision))


def test_a_hub_id_is_fetched_once_and_built(hub: Hub, tmp_path: Path) -> None:
    source = find("lab/tiny")
    assert (source.id, source.kind, source.architecture) == ("lab/tiny", "checkpoint", "Qwen3ForCausalLM")
    fetched = len(hub.served)
    assert find("lab/tiny") == source
    assert len(hub.served) == fetched
    gguf = toolchains()["gguf"]
    artifact = asyncio.run(prepare(source, gguf, "Q8_0", tmp_path / "cache", lambda stage, done: None, rules=None))
    assert Path(artifact.path).stat().st_size > 0


def test_no_pickle_is_ever_fetched(hub: Hub) -> None:
    find("lab/tiny")
    assert "lab/tiny/model.safetensors" in hub.served
    assert not any(name.endswith(".bin") for name in hub.served)


def test_what_is_cached_is_used_when_the_hub_is_out_of_reach_and_said_in_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)  # an OpenVINO export in the same process leaves the root logger at errors
    source = find("lab/tiny")
    hub.down = True
    assert find("lab/tiny") == source
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    caplog.clear()
    assert find("lab/tiny") == source
    (line,) = caplog.messages
    assert "the hub cannot be reached; 'lab/tiny' is what its cache has" in line
    assert COMMIT in line
    with pytest.raises(CannotBuild, match=r"'lab/other' is not cached in whole and the hub cannot be reached"):
        find("lab/other")


def test_a_model_is_explained_without_fetching_it(hub: Hub, tmp_path: Path) -> None:
    with serve(tmp_path, {"tiny": {"source": "lab/tiny", "runtime": "llamacpp"}}) as served:
        url = f"{served.root}/v1/models/tiny/explain"
        explained = httpx.get(url, timeout=60).json()
        assert explained["chosen"] is None
        assert "'lab/tiny' is not fetched yet" in explained["reason"]
        assert explained["host"]["cores"] > 0
        assert hub.served == []
        find("lab/tiny")
        fetched = len(hub.served)
        assert httpx.get(url, timeout=60).json()["chosen"].startswith("llamacpp/cpu/")
        assert len(hub.served) == fetched


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: Hub) -> None:
    weights = hub.folder / "lab" / "tiny" / "model.safetensors"
    with weights.open("r+b") as file:  # the library keeps what it has by 10 MiB
        file.truncate(30 << 20)
    whole = sum(file.stat().st_size for file in weights.parent.iterdir() if file.suffix != ".bin")
    hub.breaks.add("lab/tiny/model.safetensors")
    assert find("lab/tiny").kind == "checkpoint"
    assert hub.served.count("lab/tiny/model.safetensors") == 2
    assert whole < hub.bytes < 1.25 * whole


def test_what_was_fetched_in_whole_before_a_kill_is_not_fetched_again_and_leftovers_go(
    hub: Hub, tmp_path: Path
) -> None:
    order = msgspec.json.encode(Fetch("lab/tiny", None)) + b"\n"
    hub.stalls.add("lab/tiny/model.safetensors")
    with subprocess.Popen([sys.executable, "-m", "enginehouse.optimize.build"], stdin=PIPE, stdout=PIPE) as child:
        assert child.stdin
        child.stdin.write(order)
        child.stdin.flush()
        assert hub.stalled.wait(30)
        needed = {f"lab/tiny/{file.name}" for file in (hub.folder / "lab" / "tiny").iterdir() if file.suffix != ".bin"}
        while not needed <= set(hub.served) or len(parts := list((tmp_path / "hub-cache").rglob("*.incomplete"))) > 1:
            pass
        child.kill()
    hub.stalls.clear()
    (left,) = parts
    os.utime(left, (0, 0))
    before = len(hub.served)
    assert find("lab/tiny").kind == "checkpoint"
    assert "lab/tiny/model.safetensors" in hub.served[before:]
    assert len(hub.served) == len(set(hub.served)) + 1
    assert not left.exists()


def test_a_revision_is_honoured(hub: Hub) -> None:
    assert find("lab/tiny", COMMIT).kind == "checkpoint"
    with pytest.raises(CannotBuild, match="no revision 'v9'; name a branch, a tag or a commit"):
        find("lab/tiny", "v9")


def test_a_gguf_file_of_a_repository_is_a_source(hub: Hub, tmp_path: Path) -> None:
    gguf = toolchains()["gguf"]
    artifact = asyncio.run(
        prepare(find("lab/tiny"), gguf, "Q8_0", tmp_path / "cache", lambda stage, done: None, rules=None)
    )
    ready = hub.folder / "lab" / "ready"
    ready.mkdir()
    shutil.copy(artifact.path, ready / "tiny-Q8_0.gguf")
    assert find("lab/ready").precision == "Q8_0"
    for name in ("Q4_K_M", "Q5_K_M", "Q8_0"):
        (hub.folder / "lab" / "many").mkdir(exist_ok=True)
        (hub.folder / "lab" / "many" / f"tiny-{name}.gguf").write_bytes(
            Path(artifact.path).read_bytes() + name.encode()
        )
    hub.served.clear()
    assert find("lab/many/tiny-Q5_K_M.gguf").path.endswith("tiny-Q5_K_M.gguf")
    assert find("lab/many").path.endswith("tiny-Q4_K_M.gguf")
    assert find("lab/many", precision="Q5_K_M").path.endswith("tiny-Q5_K_M.gguf")
    assert hub.served == ["lab/many/tiny-Q5_K_M.gguf", "lab/many/tiny-Q4_K_M.gguf"]
    with pytest.raises(CannotBuild, match=r"none in Q6_K; name one, as in lab/many/tiny-Q4_K_M\.gguf; there are: "):
        find("lab/many", precision="Q6_K")
    with pytest.raises(CannotBuild, match=r"no such file: 'other\.gguf'; there is: tiny-Q4_K_M\.gguf, "):
        find("lab/many/other.gguf")


def test_a_ready_artifact_in_a_folder_of_a_repository_is_fetched_alone(hub: Hub) -> None:
    for name in ("cpu_and_mobile/cpu-int4", "cuda/cuda-int4"):
        folder = hub.folder / "lab" / "genai" / name
        folder.mkdir(parents=True)
        (folder / "genai_config.json").write_text('{"model": {"decoder": {"filename": "model.onnx"}}}')
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "model.onnx.data").write_bytes(b"weights")
        (folder / "training.bin").write_bytes(b"a pickle nobody asked for")
    with pytest.raises(CannotBuild, match="holds its models in folders; name one, as in lab/genai/cpu_and_mobile/cpu"):
        find("lab/genai")
    assert hub.served == []
    source = find("lab/genai/cpu_and_mobile/cpu-int4")
    assert (source.kind, source.id) == ("onnx", "lab/genai/cpu_and_mobile/cpu-int4")
    assert sorted(Path(name).name for name in hub.served) == ["genai_config.json", "model.onnx", "model.onnx.data"]
    with pytest.raises(CannotBuild, match="'lab/genai' has no folder 'npu'"):
        find("lab/genai/npu")


def test_the_weights_are_fetched_once_where_a_repository_holds_them_twice(hub: Hub) -> None:
    tiny = hub.folder / "lab" / "tiny"
    (tiny / "consolidated.safetensors").write_bytes(b"the same again")
    (tiny / "original").mkdir()
    (tiny / "original" / "model.safetensors").write_bytes(b"and again")
    (tiny / "modeling_tiny.py").write_text("raise SystemExit")
    (tiny / "tiny-Q4_K_M.gguf").write_bytes(b"and ready")
    assert find("lab/tiny").kind == "checkpoint"
    weights = [name for name in hub.served if not name.endswith((".json", ".jinja"))]
    assert weights == ["lab/tiny/model.safetensors"]


def test_an_unknown_and_a_gated_repository_and_a_bad_token_are_refused_with_the_remedy(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotBuild, match=r"knows no 'lab/none', or it is private.*set HF_TOKEN"):
        find("lab/none")
    hub.gated.add("lab/tiny")
    with pytest.raises(CannotBuild, match=r"'lab/tiny' is gated: accept its licence on the hub and set HF_TOKEN"):
        find("lab/tiny")
    hub.token = "hf_good"
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(CannotBuild, match=r"the hub does not know the token in HF_TOKEN: set a valid one"):
        find("lab/tiny")


def test_a_hub_that_fails_is_said_to_fail_and_nothing_broken_is_kept(hub: Hub) -> None:
    hub.down = True
    with pytest.raises(CannotBuild, match="the hub cannot be reached") as refusal:
        find("lab/tiny")
    assert refusal.value.environment
    hub.down = False
    assert find("lab/tiny").kind == "checkpoint"


def test_an_adapter_is_fetched_and_merged_and_only_its_two_files(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    from tests.checkpoints import make_adapter

    adapter = make_adapter(hub.folder / "lab" / "lora", checkpoint)
    (adapter / "adapter_model.bin").write_bytes(b"a pickle nobody asked for")
    source = asyncio.run(adapt(find("lab/tiny"), "lab/lora", tmp_path / "cache", lambda stage, done: None))
    assert (source.id, source.kind) == ("lab/tiny + lab/lora", "checkpoint")
    fetched = sorted(name for name in hub.served if name.startswith("lab/lora"))
    assert fetched == ["lab/lora/adapter_config.json", "lab/lora/adapter_model.safetensors"]
    with pytest.raises(CannotBuild, match=r"adapter 'lab/tiny' has no adapter_config\.json"):
        asyncio.run(adapt(find("lab/tiny"), "lab/tiny", tmp_path / "cache", lambda stage, done: None))
