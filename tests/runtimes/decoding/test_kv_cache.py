"""How many tokens a request may use: what is asked for, what the model was made for, what the memory holds."""

from typing import Any

import msgspec
import pytest

from enginehouse.runtimes.contract import Load
from enginehouse.runtimes.decoding.kv_cache import LEAST_CONTEXT, cells, context_of

KIB, GIB = 1 << 10, 1 << 30
LOAD = Load("any", "", 131_072, 8, 2, 8 * GIB)
FITTED = msgspec.structs.replace(LOAD, fit=True)


@pytest.mark.parametrize(
    ("load", "settings", "context"),
    [
        (LOAD, {}, 131_072),  # the operator's word is taken, and refused later where it cannot be kept
        (LOAD, {"own": 4096}, 4096),
        (FITTED, {"token_bytes": 16 * KIB}, 131_072),
        (FITTED, {"token_bytes": 128 * KIB}, 32_768),  # of a half of what is free
        (FITTED, {"token_bytes": 128 * KIB, "fixed_bytes": 2 * GIB}, 16_384),
        (FITTED, {"own": 4096, "token_bytes": 128 * KIB}, 4096),
        (FITTED, {"kv_tokens": 20_000, "token_bytes": 16 * KIB}, 20_000),
        (FITTED, {"token_bytes": GIB}, LEAST_CONTEXT),
        (msgspec.structs.replace(FITTED, free_bytes=0), {"token_bytes": GIB}, 131_072),  # nobody knows
        (FITTED, {"token_bytes": 0}, 131_072),  # a recurrent model
    ],
)
def test_a_context_is_fitted_to_memory_unless_it_was_asked_for(
    load: Load, settings: dict[str, Any], context: int
) -> None:
    assert context_of(load, **({"own": 0, "kv_tokens": None, "token_bytes": KIB} | settings)) == context


def test_cells_hold_at_least_one_context() -> None:
    assert cells(None, 32_768, 8) == 32_768
    with pytest.raises(ValueError, match="kv_tokens 100 is less than the context of 256 tokens"):
        cells(100, 256, 8)
