"""Checkpoints as the hub has them quantized: brought to the 16 bits that the method's own arithmetic gives."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.prepare import in_16_bits, prepare
from enginehouse.optimize.sources.dequantize import dequantize
from enginehouse.optimize.sources.quantizations import refusal
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains import toolchains
from tests.checkpoints import make_checkpoint

NAME = "model.layers.0.mlp.down_proj"
NF4_TABLE = torch.linspace(-1, 1, 16)
Quantized = tuple[dict[str, torch.Tensor], torch.Tensor]  # tensors by the end of their name, and what they stand for


def quiet(stage: str, fraction: float) -> None: ...


def packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Along the last axis, the lowest bits first, into words of 32."""
    each = 32 // bits
    words = numbers.to(torch.int64).reshape(*numbers.shape[:-1], -1, each) << (torch.arange(each) * bits)
    total = words.sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def fp8(weight: torch.Tensor, block: int) -> Quantized:
    rows, columns = -(-weight.shape[0] // block), -(-weight.shape[1] // block)
    scale = torch.rand(rows, columns) * 0.01 + 0.001
    small = (torch.randn_like(weight) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
    parts = {".weight": small, ".weight_scale_inv": scale}
    return parts, _dequantize_fp8_weight(small, scale, [block, block], torch.float32)


def int8(weight: torch.Tensor) -> Quantized:
    scale = weight.abs().amax(1, keepdim=True) / 127
    small = (weight / scale).round().to(torch.int8)
    return {".weight": small, ".weight_scale": scale}, small.float() * scale


def int8_asymmetric(weight: torch.Tensor) -> Quantized:
    parts, _ = int8(weight)
    zeros = torch.randint(-9, 9, (weight.shape[0], 1), dtype=torch.int8)
    return parts | {".weight_zero_point": zeros}, (parts[".weight"].float() - zeros) * parts[".weight_scale"]


def pack_quantized(weight: torch.Tensor, bits: int = 4, group: int = 32, zero_points: bool = False) -> Quantized:
    rows, columns = weight.shape
    numbers = torch.randint(0, 1 << bits, weight.shape)
    scale = (torch.rand(rows, columns // group) * 0.01).to(torch.float16)
    parts = {
        ".weight_packed": packed(numbers, bits),
        ".weight_scale": scale,
        ".weight_shape": torch.tensor(weight.shape),
    }
    zeros = torch.full((rows, columns // group), 1 << (bits - 1))
    if zero_points:
        zeros = torch.randint(0, 1 << bits, zeros.shape)
        parts[".weight_zero_point"] = packed(zeros.T, bits).T.contiguous()
    spread = [part.repeat_interleave(group, 1) for part in (zeros, scale.float())]
    return parts, (numbers - spread[0]) * spread[1]


def gptq(weight: torch.Tensor, bits: int = 4, group: int = 32, act_order: bool = False) -> Quantized:
    columns, rows = weight.shape  # of the linear layer: outputs, inputs
    groups = torch.arange(rows) // group
    if act_order:
        groups = groups[torch.randperm(rows)]
    numbers = torch.randint(0, 1 << bits, (rows, columns))
    zeros = torch.randint(0, (1 << bits) - 1, (rows // group, columns))
    scales = (torch.rand(rows // group, columns) * 0.01).to(torch.float16)
    parts = {
        ".qweight": packed(numbers.T, bits).T.contiguous(),
        ".qzeros": packed(zeros, bits),
        ".scales": scales,
        ".g_idx": groups.to(torch.int32),
    }
    return parts, ((numbers - zeros[groups] - 1) * scales.float()[groups]).T


def awq(weight: torch.Tensor, group: int = 32) -> Quantized:
    columns, rows = weight.shape
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    numbers = torch.randint(0, 16, (rows, columns))
    zeros = torch.randint(0, 16, (rows // group, columns))
    scales = (torch.rand(rows // group, columns) * 0.01).to(torch.float16)
    qweight, qzeros = (
        packed(part.reshape(-1, columns // 8, 8)[:, :, order].reshape(part.shape), 4) for part in (numbers, zeros)
    )
    spread = [part.repeat_interleave(group, 0) for part in (zeros, scales.float())]
    return {".qweight": qweight, ".qzeros": qzeros, ".scales": scales}, ((numbers - spread[0]) * spread[1]).T


def nf4(weight: torch.Tensor, nested: bool = True) -> Quantized:
    numbers = torch.randint(0, 16, (weight.numel(),))
    count = weight.numel() // 64
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
    parts = {".weight": ((numbers[::2] << 4) | numbers[1::2]).to(torch.uint8)[:, None], ".weight.quant_map": NF4_TABLE}
    if nested:
        codes, table = torch.randint(0, 256, (count,)), torch.linspace(-1, 1, 256)
        outer = torch.rand(-(-count // 256))
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
        parts |= {
            ".weight.absmax": codes.to(torch.uint8),
            ".weight.nested_absmax": outer,
            ".weight.nested_quant_map": table,
        }
        largest = table[codes] * outer.repeat_interleave(256)[:count] + 0.5
    else:
        largest = parts[".weight.absmax"] = torch.rand(count)
    written = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    parts[".weight.quant_state.bitsandbytes__nf4"] = written
    return parts, (NF4_TABLE[numbers] * largest.repeat_interleave(64)).reshape(weight.shape)


def bitsandbytes_8(weight: torch.Tensor) -> Quantized:
    largest = weight.abs().amax(1)
    small = (weight * 127 / largest[:, None]).round().to(torch.int8)
    parts = {".weight": small, ".SCB": largest, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, small.float() * largest[:, None] / 127


def compressed_tensors(format: str, **weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": {"weights": weights}}}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
KINDS: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], Quantized]]] = {
    "fp8 in blocks": ({"quant_method": "fp8", "weight_block_size": [48, 48]}, lambda weight: fp8(weight, 48)),
    "int8": (compressed_tensors("int-quantized", num_bits=8), int8),
    "int8 with zero points": (compressed_tensors("int-quantized", num_bits=8), int8_asymmetric),
    "packed int4": (compressed_tensors("pack-quantized", num_bits=4), pack_quantized),
    "packed int4 with zero points": (
        compressed_tensors("pack-quantized", num_bits=4),
        lambda weight: pack_quantized(weight, zero_points=True),
    ),
    "packed int8": (compressed_tensors("pack-quantized", num_bits=8), lambda weight: pack_quantized(weight, 8)),
    "gptq": (GPTQ, gptq),
    "gptq in the order of activations": (GPTQ, lambda weight: gptq(weight, act_order=True)),
    "gptq in 8 bits": (GPTQ | {"bits": 8}, lambda weight: gptq(weight, 8)),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, awq),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, lambda weight: nf4(weight, nested=False)),
    "nf4, nested": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4),
    "bitsandbytes in 8 bits": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, bitsandbytes_8),
}


def quantized(folder: Path, settings: dict[str, Any], quantize: Callable[[torch.Tensor], Quantized]) -> torch.Tensor:
    """Makes a checkpoint of which one weight is quantized; gives what that weight is."""
    make_checkpoint(folder, dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    parts, weight = quantize(tensors.pop(f"{NAME}.weight").float())
    save_file(tensors | {f"{NAME}{end}": part for end, part in parts.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return weight


def in_16_bits_here(folder: Path, cache: Path) -> Source:
    return resolve(str(folder), at=dequantize(resolve(str(folder)), cache, quiet))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_what_its_method_says(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = quantized(tmp_path / "model", *KINDS[kind])
    made = Path(in_16_bits_here(tmp_path / "model", tmp_path / "cache").path)
    tensors = load_file(made / "model-00001-of-00001.safetensors")
    assert torch.equal(tensors[f"{NAME}.weight"], expected.to(torch.bfloat16))
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    plain = load_file(make_checkpoint(tmp_path / "plain", dtype=torch.bfloat16) / "model.safetensors")
    assert tensors.keys() == plain.keys()
    assert all(torch.equal(tensors[name], plain[name]) for name in plain.keys() - {f"{NAME}.weight"})


def test_the_experts_of_gpt_oss_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    folder, name = tmp_path / "model", "model.layers.0.mlp.experts.gate_up_proj"
    make_checkpoint(folder, "GptOssForCausalLM", dtype=torch.bfloat16, num_local_experts=2, num_experts_per_tok=1)
    tensors = load_file(folder / "model.safetensors")
    experts, inputs, outputs = tensors.pop(name).shape
    blocks = tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
    scales = tensors[f"{name}_scales"] = torch.randint(118, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    made = Path(in_16_bits_here(folder, tmp_path / "cache").path)
    expected = convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(load_file(made / "model-00001-of-00001.safetensors")[name], expected)


def test_every_number_of_eight_bits_is_torchs() -> None:
    import numpy as np

    from enginehouse.optimize.sources.floats import widen

    codes = np.arange(256, dtype=np.uint8)
    kinds = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu}
    for dtype, kind in kinds.items():
        expected = torch.from_numpy(codes).view(kind).float().numpy()
        assert np.array_equal(widen(codes, dtype), expected, equal_nan=True)


def test_a_quantized_checkpoint_becomes_an_artifact_once(tmp_path: Path) -> None:
    quantized(tmp_path / "model", *KINDS["gptq"])
    source, cache, gguf = resolve(str(tmp_path / "model")), tmp_path / "cache", toolchains()["gguf"]
    with pytest.raises(CannotBuild, match="is not brought to 16 bits yet"):
        asyncio.run(in_16_bits(source, cache, quiet, cached_only=True))
    made = asyncio.run(in_16_bits(source, cache, quiet))
    assert made.fingerprint == asyncio.run(in_16_bits(source, cache, quiet, cached_only=True)).fingerprint
    assert gguf.refuses(made) is None
    assert asyncio.run(prepare(made, gguf, "BF16", cache, quiet)).quality


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"quant_method": "aqlm"}, "('aqlm')"),
        ({"quant_method": "gptq", "bits": 3}, "('gptq', 3 bits)"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "('awq', 4 bits, version 'gemv')"),
        (compressed_tensors("nvfp4-pack-quantized"), "('compressed-tensors', format 'nvfp4-pack-quantized')"),
        ({}, "('unknown')"),
    ],
)
def test_what_is_not_known_is_refused_by_name_by_every_toolchain(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings or {"bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    source = asyncio.run(in_16_bits(resolve(str(folder)), tmp_path / "cache", quiet))
    whole = f"the checkpoint is quantized already {sentence[:-1]}); give the unquantized checkpoint it was made from"
    assert refusal(config) == whole
    assert {toolchain.refuses(source) for toolchain in toolchains().values()} == {whole}


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    quantized(folder, *KINDS["awq"])
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{NAME}.scales"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CannotBuild, match=f"lacks '{NAME}.scales'; download it again"):
        in_16_bits_here(folder, tmp_path / "cache")
