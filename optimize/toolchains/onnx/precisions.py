"""The names of what can be built, and what each means."""

import msgspec


class Precision(msgspec.Struct, frozen=True):
    """How weights are kept. Arithmetic and KV cache are 32-bit, but for `half`."""

    bits: int = 32
    block: int = 0  # weights with one scale
    method: str = "rtn"  # rtn | k_quant | gptq
    head_bits: int = 0  # of the head and of the embedding
    mixed: bool = False  # all but the first matrices of a feed-forward network in eight bits
    half: bool = False  # the graph is converted to float16

    def bits_per_weight(self) -> float:
        if self.bits == 32:
            return 16.0 if self.half else 32.0
        return (8 if self.mixed else self.bits) + 40 / self.block


def quantized() -> dict[str, Precision]:
    """INT4_B32, INT4_B128_KQUANT_H8, ...: bits, block, method if not round-to-nearest, eight bits for the head, or
    MIXED: for all but gate and up."""
    named = {f"INT8_B{block}": Precision(8, block, "rtn", 8) for block in (32, 64, 128)}
    for block in (32, 64, 128):
        for method, suffix in (("rtn", ""), ("k_quant", "_KQUANT"), ("gptq", "_GPTQ")):
            for head_bits, ending in ((4, ""), (8, "_H8")):
                named[f"INT4_B{block}{suffix}{ending}"] = Precision(4, block, method, head_bits)
        for method, suffix in (("rtn", ""), ("k_quant", "_KQUANT")):
            named[f"INT4_B{block}{suffix}_MIXED"] = Precision(4, block, method, 8, mixed=True)
    return named


PRECISIONS = {**quantized(), "F16": Precision(half=True), "F32": Precision()}
