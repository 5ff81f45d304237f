"""What our own converter does not know goes through llama.cpp's: fetched once, run apart, held to the same checks."""

import json
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains.gguf import upstream
from enginehouse.optimize.toolchains.gguf.toolchain import TOOLCHAIN
from tests.bench.families import FAMILIES, VOCABULARY, compare, make, tokenizer
from tests.checkpoints import SMALL, make_checkpoint, save_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
SDIST = f"llama_cpp_python-{llama_cpp.__version__}"
# A source distribution that pip can ask for its name without fetching anything to build it with.
METADATA = f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {llama_cpp.__version__}\n"
BACKEND = f"""
from pathlib import Path
def prepare_metadata_for_build_wheel(folder, settings=None):
    info = Path(folder) / "{SDIST}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text({METADATA!r})
    return info.name
"""
SOURCES = {
    "PKG-INFO": METADATA,
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    "backend.py": BACKEND,
    "vendor/llama.cpp/conversion/__init__.py": 'TEXT_MODEL_MAP: dict[str, str] = {"Toy": "toy", "Bert": "bert"}\n',
    "vendor/llama.cpp/conversion/toy.py": "",
    "vendor/llama.cpp/gguf-py/gguf/__init__.py": "",
    "vendor/llama.cpp/src/llama.cpp": "not wanted",
}


@pytest.fixture(scope="module", autouse=True)
def converter() -> None:
    try:
        upstream.installed() or upstream.fetched()
    except CannotBuild as refusal:
        pytest.skip(str(refusal))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral") / "model"
    make("Mixtral", folder)
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without the converter, and no network; the folder is the only place where pip looks."""
    monkeypatch.setattr(upstream, "KEPT", str(tmp_path / "kept"))
    monkeypatch.setattr(upstream, "installed", lambda: None)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    return tmp_path


def build(folder: Path, output: Path, precision: str = "F32", report: Any = lambda stage, fraction: None) -> Path:
    output.mkdir()
    TOOLCHAIN.build(resolve(str(folder)), precision, output, report)
    return output / TOOLCHAIN.entry


def test_a_mixture_and_a_hybrid_compute_what_transformers_does(tmp_path: Path, mixtral: Path) -> None:
    make("Granite 4", tmp_path / "model")
    for folder in (mixtral.parent, tmp_path):
        assert compare("gguf", folder)["largest"] < 0.02


def test_the_text_half_of_a_multimodal_checkpoint_is_converted(tmp_path: Path) -> None:
    kind = transformers.Qwen3_5ForConditionalGeneration
    text = {**SMALL, **FAMILIES["Qwen3.5"][1], "vocab_size": VOCABULARY}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    torch.manual_seed(0)
    folder = tmp_path / "model"
    kind(kind.config_class(text_config=text, vision_config=vision)).save_pretrained(folder)
    save_tokenizer(folder, tokenizer())
    import gguf

    names = {tensor.name for tensor in gguf.GGUFReader(build(folder, tmp_path / "out")).tensors}
    assert {"token_embd.weight", "blk.3.attn_q.weight"} <= names
    assert not any(name.startswith(("v.", "mm.")) for name in names)


def test_ends_progress_and_smaller_files_are_as_with_our_own(mixtral: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    file = build(mixtral, tmp_path / "out", "Q8_0", lambda stage, fraction: told.append((stage, fraction)))
    assert [file.name for file in (tmp_path / "out").iterdir()] == [TOOLCHAIN.entry]
    assert file.stat().st_size < 0.5 * (mixtral / "model.safetensors").stat().st_size
    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    assert json.loads(model.metadata["enginehouse.eos_token_ids"]) == [1, 2]
    assert json.loads(model.metadata["enginehouse.text"])["nfc"] is True
    for stage in ("convert", "quantize", "check"):
        fractions = [fraction for name, fraction in told if name == stage]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


def test_no_code_of_a_checkpoint_is_run(mixtral: Path, tmp_path: Path) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    make_checkpoint(folder, "MixtralForCausalLM", tokenizer=tokenizer(), vocab_size=VOCABULARY, num_local_experts=2)
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    for name, auto_map in (
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ):
        written = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(written | {"auto_map": auto_map, "tokenizer_class": "Evil"}))
    try:
        build(folder, tmp_path / "out")
    finally:
        assert not ran.exists()


def test_a_converter_that_is_killed_is_one_sentence(mixtral: Path, tmp_path: Path) -> None:
    def kill() -> None:
        while True:
            for child in psutil.Process().children():
                if any(word.endswith("upstream_process") for word in child.cmdline()):
                    child.kill()
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(CannotBuild, match=r"^llama.cpp's converter ended with status -9 in the middle") as raised:
        build(mixtral, tmp_path / "out")
    killer.join()
    assert raised.value.environment
    assert not list((tmp_path / "out").iterdir())


def test_what_the_converter_says_is_in_the_sentence(mixtral: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "MixtralForCausalLM", num_local_experts=2)
    config = json.loads((folder / "config.json").read_text())
    del config["num_local_experts"]
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": 3, "num_local_experts": 3}))
    with pytest.raises(
        CannotBuild, match=r"^llama.cpp's converter does not take this checkpoint: ValueError: .+[^\n]$"
    ):
        build(folder, tmp_path / "out")


def test_a_name_that_neither_knows_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for name in ("UnheardOfForCausalLM", "BertModel"):
        (folder / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
        sentence = f"architecture '{name}' is known neither to our converter to gguf nor to llama.cpp's own"
        assert TOOLCHAIN.refuses(resolve(str(folder))) == sentence


def test_where_it_cannot_be_fetched_the_build_says_so(nowhere: Path, mixtral: Path) -> None:
    assert TOOLCHAIN.refuses(resolve(str(mixtral))) is None
    with pytest.raises(
        CannotBuild, match=r"^llama.cpp's own converter is not installed, and pip cannot fetch"
    ) as raised:
        build(mixtral, nowhere / "out")
    assert raised.value.environment
    assert "\n" not in str(raised.value)
    assert [path.name for path in (nowhere / "kept").iterdir()] == ["locks"]


def test_it_is_taken_out_of_the_sources_once_and_whole(nowhere: Path) -> None:
    sources = nowhere / SDIST
    for name, text in SOURCES.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text)
    with tarfile.open(nowhere / "links" / f"{SDIST}.tar.gz", "w:gz") as archive:
        archive.add(sources, SDIST)
    with ThreadPoolExecutor() as threads:
        folders = {future.result() for future in [threads.submit(upstream.fetched) for _ in range(3)]}
    (folder,) = folders
    assert upstream.architectures(folder) == {"Toy"}
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["conversion/__init__.py", "conversion/toy.py", "gguf/__init__.py"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, "locks"]
