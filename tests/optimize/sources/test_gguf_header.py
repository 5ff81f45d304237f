"""A GGUF file's header is read quickly and without the libraries, and a damaged file is told apart."""

import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.gguf_header import PRECISIONS, TENSOR_TYPES, read_header


def write(file: Path, tokens: int = 10, file_type: int | None = 7) -> Path:
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.add_name("small")
    writer.add_context_length(4096)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_token_list([f"token {i}" for i in range(tokens)])
    writer.add_token_merges([f"a{i} b{i}" for i in range(tokens)])
    writer.add_token_scores([0.5] * tokens)
    writer.add_bool("last", True)
    blocks = np.zeros((4, 2 * 34), np.uint8)
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_header_says_what_the_model_is(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "a.gguf"))
    assert (header.architecture, header.name, header.context_length) == ("qwen3", "small", 4096)
    assert header.parameters == 4 * 64 + 64
    assert header.precision == "Q8_0"
    assert header.quantized
    assert header.parts == 1


def test_without_a_file_type_most_weights_decide(tmp_path: Path) -> None:
    assert read_header(write(tmp_path / "a.gguf", file_type=None)).precision == "Q8_0"


def test_a_large_vocabulary_is_passed_over_in_a_second(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", tokens=150_000)
    began = time.process_time()
    read_header(file)
    assert time.process_time() - began < 1


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    file = tmp_path / "cut.gguf"
    for size in [*range(4, len(whole) - 1, 7), len(whole) - 32]:
        file.write_bytes(whole[:size])
        with pytest.raises(CannotBuild, match=f"'cut.gguf' is damaged or truncated at {size} bytes; download it again"):
            read_header(file)


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (b"", "'a.gguf' is not a gguf file"),
        (b"GGML\3\0\0\0", "'a.gguf' is not a gguf file; give one, or a Hugging Face folder"),
        (b"GGUF\1\0\0\0", "'a.gguf' is gguf version '1'; known: 2, 3"),
        (b"GGUF\0\0\0\3", "'a.gguf' is gguf version '50331648'; known: 2, 3"),
    ],
)
def test_a_foreign_file_is_refused(start: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(start + bytes(64) * bool(start))
    with pytest.raises(CannotBuild, match=sentence):
        read_header(tmp_path / "a.gguf")


def test_random_damage_never_gets_past_as_another_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    generator, file = np.random.default_rng(0), tmp_path / "damaged.gguf"
    for _ in range(500):
        damaged = bytearray(whole)
        for position in generator.integers(8, len(whole) - 600, 3):
            damaged[position] = generator.integers(256)
        file.write_bytes(damaged)
        try:
            read_header(file)
        except CannotBuild as refusal:
            assert "damaged" in str(refusal)


def test_the_tables_are_those_of_the_gguf_library() -> None:
    for number, (name, block, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))
    for number, name in PRECISIONS.items():
        assert name in gguf.LlamaFileType(number).name


def test_the_server_process_reads_headers_without_heavy_libraries() -> None:
    script = (
        "import sys, enginehouse.optimize.sources.gguf_header\n"
        "import enginehouse.optimize.toolchains.gguf.conversion\n"
        "import enginehouse.optimize.toolchains.gguf as toolchain\n"
        "toolchain.TOOLCHAIN.unavailable()\n"
        "print([name for name in ('numpy', 'gguf', 'llama_cpp', 'tokenizers', 'torch') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
