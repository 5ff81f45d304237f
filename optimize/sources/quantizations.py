"""How published checkpoints hold quantized weights, by `quant_method`: which tensors make one, and how they do."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.floats import FLOATS, widen
from enginehouse.optimize.sources.safetensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

Tensors = Mapping[str, StoredTensor]
Settings = Mapping[str, Any]  # a config.json's quantization_config
COMPRESSED = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")  # of compressed-tensors
EIGHT_BITS = ("F8_E4M3", "F8_E5M2", "I8")
# Of activations and caches, for kernels that compute in eight bits.
UNUSED = (
    ".input_scale", ".activation_scale", "_activation_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale",
    ".input_zero_point", ".input_global_scale", ".weight_format",
)  # fmt: skip
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of columns in the eight nibbles of a word
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MXFP4_BLOCK = 32
BITSANDBYTES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")


class Weight(msgspec.Struct, frozen=True):
    """One weight of the model."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]  # the tensors it is made of, which are no weights themselves
    values: "Callable[[int], Array]"  # in 32 bits: of one member of the first axis where there are three, else of all


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why the weights of this config.json are not brought to 16 bits, None where they are that or can be."""
    settings = settings_of(config)
    return None if settings is None or unknown(method_of(settings), settings) is None else already_quantized(config)


def already_quantized(config: Mapping[str, Any]) -> str | None:
    """What a toolchain says of such a config.json: what can be brought to 16 bits was so before it sees it."""
    settings = settings_of(config)
    if settings is None:
        return None
    method = method_of(settings)
    named = f"'{method}'{unknown(method, settings) or ''}"
    return f"the checkpoint is quantized already ({named}); give the unquantized checkpoint it was made from"


def settings_of(config: Mapping[str, Any]) -> Settings | None:
    found = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    return found if isinstance(found, dict) else None


def method_of(settings: Settings) -> str:
    of_bits = "bitsandbytes" if "load_in_4bit" in settings else "unknown"
    return str(settings.get("quant_method") or of_bits)


def unknown(method: str, settings: Settings) -> str | None:
    """What of it is not known, in a few words after a comma; None if all of it is."""
    if method not in METHODS:
        return ""
    bits = settings.get("bits", settings.get("w_bit", 4))
    if method == "fp8" and settings.get("expert_dtype", "fp8") != "fp8":
        return f", experts of {settings['expert_dtype']}"
    if method == "gptq" and bits not in (2, 4, 8):
        return f", {bits} bits"
    if method == "awq" and (bits != 4 or str(settings.get("version", "gemm")).lower() != "gemm"):
        return f", {bits} bits, version '{settings.get('version', 'gemm')}'"
    if method == "compressed-tensors":
        groups = [group for group in settings.get("config_groups", {}).values() if isinstance(group, dict)]
        formats = {str(part["format"]) for part in (settings, *groups) if part.get("format")} - {"mixed-precision"}
        if foreign := sorted(formats - set(COMPRESSED)):
            return f", format '{foreign[0]}'"
        sparse = (settings.get("sparsity_config") or {}).get("format", "dense")
        if sparse != "dense" or settings.get("transform_config"):
            return f", sparsity '{sparse}'" if sparse != "dense" else ", with a transform"
    return None


def weights(tensors: Tensors, settings: Settings) -> dict[str, Weight]:
    """Every weight that is quantized, by its name in the model. Raises CannotBuild where parts are missing."""
    try:
        return METHODS[method_of(settings)](tensors, settings)
    except KeyError as error:
        raise CannotBuild(f"the quantized checkpoint lacks {error}; download it again") from error


# --- one scale for a row, a block or the whole ---


def scaled(tensors: Tensors, settings: Settings) -> dict[str, Weight]:
    """What compressed-tensors does not pack: numbers of eight bits and what they are to be multiplied with."""
    found = {}
    for name, scale in tensors.items():
        base = name.removesuffix("_inv").removesuffix("_scale")
        if base != name and base in tensors and tensors[base].dtype in EIGHT_BITS and scale.dtype in FLOATS:
            zeros = f"{base}_zero_point" if f"{base}_zero_point" in tensors else ""
            found[base] = scaled_weight(tensors, base, name, zeros, settings.get("weight_block_size"))
    return found


def scaled_weight(tensors: Tensors, name: str, scale: str, zeros: str, block: list[int] | None) -> Weight:
    import numpy as np

    shape = tensors[name].shape
    steps, offsets = numbers(tensors[scale]), numbers(tensors[zeros]) if zeros else None

    def values(member: int) -> "Array":
        if len(shape) < 3:
            return undo(numbers(tensors[name]), steps, offsets)
        own_offsets = offsets[member] if offsets is not None and offsets.ndim == 3 else offsets
        return undo(numbers(tensors[name], member), steps[member] if steps.ndim == 3 else steps, own_offsets)

    def undo(array: "Array", steps: "Array", offsets: "Array | None") -> "Array":
        shifted = array if offsets is None else array - spread(offsets, array.shape, block)
        return np.asarray(shifted * spread(steps, array.shape, block))

    return Weight(shape, tuple(part for part in (name, scale, zeros) if part), values)


def spread(scale: "Array", shape: tuple[int, ...], block: list[int] | None) -> "Array":
    """One for each weight, or of a shape that numpy makes so."""
    if scale.size == 1:
        return scale.reshape(())
    scale = scale.reshape(*scale.shape, *[1] * (len(shape) - scale.ndim))
    for axis, size in enumerate(shape):
        count = scale.shape[axis]
        if count not in (1, size):
            each = block[axis - len(shape)] if block else 1
            if -(-size // each) != count:
                each = -(-size // count)
            scale = scale.repeat(each, axis).take(range(size), axis)
    return scale


def fp8(tensors: Tensors, settings: Settings) -> dict[str, Weight]:
    """DeepSeek's and Qwen's, whose "_scale_inv" is what to multiply with, whatever its name; and fbgemm's."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype in FLOATS}
    return scaled(floats, settings)


# --- several numbers in a word of 32 bits ---


def gptq(tensors: Tensors, settings: Settings) -> dict[str, Weight]:
    bits, group = int(settings.get("bits", 4)), int(settings.get("group_size", 128))
    offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    return {f"{base}.weight": gptq_weight(tensors, base, bits, group, offset) for base in bases(tensors, ".qweight")}


def gptq_weight(tensors: Tensors, base: str, bits: int, group: int, offset: int) -> Weight:
    import numpy as np

    names = {part: f"{base}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    rows, columns = tensors[names["qweight"]].shape[0] * 32 // bits, tensors[names["scales"]].shape[1]

    def values(_: int) -> "Array":
        packed = stored(tensors[names["qweight"]])
        whole = unpack(packed.T, bits).T
        zeros, scales = unpack(stored(tensors[names["qzeros"]]), bits) + offset, numbers(tensors[names["scales"]])
        if names["g_idx"] in tensors:
            groups = stored(tensors[names["g_idx"]])
        else:
            groups = np.arange(rows) // (group if group > 0 else rows)
        return np.asarray(((whole - zeros[groups]) * scales[groups]).T)

    return Weight((columns, rows), tuple(name for name in names.values() if name in tensors), values)


def awq(tensors: Tensors, settings: Settings) -> dict[str, Weight]:
    return {f"{base}.weight": awq_weight(tensors, base) for base in bases(tensors, ".qweight")}


def awq_weight(tensors: Tensors, base: str) -> Weight:
    import numpy as np

    weight, zero, scale = (f"{base}.{part}" for part in ("qweight", "qzeros", "scales"))
    rows, columns = tensors[weight].shape[0], tensors[scale].shape[1]

    def ordered(name: str) -> "Array":
        words = unpack(stored(tensors[name]), 4).reshape(-1, columns // 8, 8)
        return np.asarray(words[:, :, np.argsort(AWQ_ORDER)].reshape(-1, columns))

    def values(_: int) -> "Array":
        scales = numbers(tensors[scale])
        groups = np.arange(rows) // (rows // scales.shape[0])
        return np.asarray(((ordered(weight) - ordered(zero)[groups]) * scales[groups]).T)

    return Weight((columns, rows), (weight, zero, scale), values)


def compressed(tensors: Tensors, settings: Settings) -> dict[str, Weight]:
    packed = {base: packed_weight(tensors, base) for base in bases(tensors, "_packed")}
    blocks = [
        (group.get("weights") or {}).get("block_structure") for group in settings.get("config_groups", {}).values()
    ]
    return scaled(tensors, {"weight_block_size": next((block for block in blocks if block), None)}) | packed


def packed_weight(tensors: Tensors, base: str) -> Weight:
    import numpy as np

    words, scale = tensors[f"{base}_packed"], f"{base}_scale"
    rows, columns = (int(size) for size in stored(tensors[f"{base}_shape"]))
    bits = 32 // -(-columns // words.shape[1])
    optional = [name for part in ("zero_point", "g_idx") if (name := f"{base}_{part}") in tensors]

    def values(_: int) -> "Array":
        whole, scales = unpack(stored(words), bits)[:, :columns], numbers(tensors[scale])
        groups = np.arange(columns) // -(-columns // scales.shape[1])
        if f"{base}_g_idx" in optional:
            groups = stored(tensors[f"{base}_g_idx"])
        if f"{base}_zero_point" in optional:
            zeros = unpack(stored(tensors[f"{base}_zero_point"]).T, bits).T[:rows, groups]
            return (whole - zeros) * scales[:, groups]
        return (whole - float(1 << (bits - 1))) * scales[:, groups]

    return Weight((rows, columns), (f"{base}_packed", f"{base}_shape", scale, *optional), values)


def unpack(words: "Array", bits: int) -> "Array":
    """The numbers of each word side by side, the lowest first, in 32-bit floats."""
    import numpy as np

    shifts = np.arange(0, 32 - bits + 1, bits, dtype=np.uint32)
    numbers = (np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return np.asarray(numbers.reshape(words.shape[0], -1).astype(np.float32))


# --- tables ---


def mxfp4(tensors: Tensors, settings: Settings) -> dict[str, Weight]:
    """gpt-oss's experts: (experts, rows, groups, 16) bytes of two numbers, and for each group a power of two."""
    return {base: mxfp4_weight(tensors, base) for base in bases(tensors, "_blocks")}


def mxfp4_weight(tensors: Tensors, base: str) -> Weight:
    import numpy as np

    blocks, scales = tensors[f"{base}_blocks"], tensors[f"{base}_scales"]
    experts, rows, groups, _ = blocks.shape

    def values(expert: int) -> "Array":
        codes = stored(blocks, expert)
        pairs = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, groups, MXFP4_BLOCK)
        exponents = stored(scales, expert).astype(np.int32) - 127
        return np.ldexp(np.array(FP4, np.float32)[pairs], exponents[:, :, None]).reshape(rows, -1).T

    return Weight((experts, groups * MXFP4_BLOCK, rows), (f"{base}_blocks", f"{base}_scales"), values)


def bitsandbytes(tensors: Tensors, settings: Settings) -> dict[str, Weight]:
    found: dict[str, Weight] = {}
    for mark in BITSANDBYTES:
        found |= {base: table_weight(tensors, base, f"{base}{mark}") for base in bases(tensors, mark)}
    return found | {f"{base}.weight": rows_weight(tensors, base) for base in bases(tensors, ".SCB")}


def table_weight(tensors: Tensors, base: str, state: str) -> Weight:
    """Four bits, each a place in a table, and a factor for each block; the factors may be so made themselves."""
    import numpy as np

    written = msgspec.json.decode(stored(tensors[state]).tobytes())
    shape, size = tuple(written["shape"]), int(written["blocksize"])
    names = [base, f"{base}.absmax", f"{base}.quant_map", state]
    nested = [f"{base}.nested_absmax", f"{base}.nested_quant_map"]
    if nested[0] in tensors:
        names += nested

    def values(_: int) -> "Array":
        codes, factors = stored(tensors[base]).reshape(-1), tensors[names[1]]
        places = np.stack([codes >> 4, codes & 15], axis=-1).reshape(-1)[: math.prod(shape)]
        largest = stored(factors) if nested[0] in names else numbers(factors)
        if nested[0] in names:
            outer = numbers(tensors[nested[0]]).repeat(int(written["nested_blocksize"]))[: largest.size]
            largest = numbers(tensors[nested[1]])[largest] * outer + np.float32(written["nested_offset"])
        return (numbers(tensors[names[2]])[places] * largest.repeat(size)[: places.size]).reshape(shape)

    return Weight(shape, tuple(names), values)


def rows_weight(tensors: Tensors, base: str) -> Weight:
    weight, scale = f"{base}.weight", f"{base}.SCB"

    def values(_: int) -> "Array":
        return numbers(tensors[weight]) * (numbers(tensors[scale])[:, None] / 127)

    return Weight(tensors[weight].shape, (weight, scale), values)


METHODS: dict[str, Callable[[Tensors, Settings], dict[str, Weight]]] = {
    "fp8": fp8,
    "fbgemm_fp8": fp8,
    "compressed-tensors": compressed,
    "gptq": gptq,
    "awq": awq,
    "mxfp4": mxfp4,
    "bitsandbytes": bitsandbytes,
}


def bases(tensors: Tensors, mark: str) -> list[str]:
    return [name.removesuffix(mark) for name in tensors if name.endswith(mark)]


def numbers(tensor: StoredTensor, member: int | None = None) -> "Array":
    """In 32-bit floats; of one member of the first axis, or all."""
    array = stored(tensor, member)
    return widen(array, tensor.dtype if tensor.dtype in FLOATS else "F32")


def stored(tensor: StoredTensor, member: int | None = None) -> "Array":
    """As mapped memory, of a type of the same size where numpy has not its own."""
    import numpy as np

    kinds: dict[str, Any] = {
        "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32, "I8": np.int8,
        "U8": np.uint8, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8,
    }  # fmt: skip
    if tensor.dtype not in kinds:
        raise CannotBuild(f"a tensor of the quantized checkpoint is stored as '{tensor.dtype}', which is not known")
    if not tensor.shape:
        return np.fromfile(tensor.file, kinds[tensor.dtype], 1, offset=tensor.offset).reshape(())
    array = np.memmap(tensor.file, kinds[tensor.dtype], "r", tensor.offset, tensor.shape)
    return array if member is None else array[member]
