"""llama.cpp's sequences in cells of their own and in one pool: as large as is wanted, and the same answers in both."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.runtimes.contract import Engine, Load
from enginehouse.runtimes.decoding import batching, kv_cache
from enginehouse.runtimes.engines.llamacpp import engine as llamacpp_engine
from enginehouse.runtimes.engines.llamacpp import kv_layout
from enginehouse.runtimes.engines.llamacpp.engine import RUNTIME, load
from enginehouse.runtimes.engines.llamacpp.kv_layout import FIRST_CELLS, OWN_CELLS, Layout
from tests.checkpoints import make_checkpoint
from tests.runtimes.engines.test_llamacpp import build, generated, run, save

if reason := RUNTIME.unavailable():
    pytest.skip(reason, allow_module_level=True)

CONTEXT = 2048
lengths = st.lists(st.integers(0, 5000), min_size=2, max_size=16).filter(any)


@given(now=st.integers(1, 40_000), own=st.booleans(), lengths=lengths, most=st.integers(1, 80_000))
def test_a_larger_cache_holds_what_it_was_made_for_and_is_no_larger_than_it_may(
    now: int, own: bool, lengths: list[int], most: int
) -> None:
    before = Layout(len(lengths) * kv_layout.padded(now) if own else now, own)
    larger = next(kv_layout.larger(before, lengths, 300, most, True), None)
    if larger is None:
        assert sum(lengths) > most or (not own and before.cells >= most)
        return
    assert larger.fits(lengths)
    assert larger.cells <= most
    assert not larger.own or larger.cells <= max(OWN_CELLS, 2 * sum(lengths))
    assert larger != before


def test_a_long_conversation_beside_free_slots_does_not_take_the_memory_of_as_many() -> None:
    form = kv_layout.first(8, 200_000, True)
    assert form == Layout(FIRST_CELLS, own=True)
    for length in range(100, 20_000, 100):
        if not form.fits(held := [length, 0, 0, 0, 0, 0, 0, 0]):
            form = next(kv_layout.larger(form, held, 264, 200_000, True))
    assert form == Layout(32_768, own=False)


def test_many_long_ones_have_cells_of_their_own_again() -> None:
    form = next(kv_layout.larger(Layout(32_768, own=False), [5000] * 8, 264, 200_000, True))
    assert form == Layout(8 * kv_layout.padded(6250), own=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    folder = tmp_path_factory.mktemp("llama")
    file = build(make_checkpoint(folder / "source", max_position_embeddings=CONTEXT), folder / "artifact")

    def load_with(slots: int, kv: str = "", **more: Any) -> Engine:
        options = {"kv_precision": "f32", "flash_attention": "off", "prefill_chunk": 128} | more
        given = Load("llamacpp", str(file), CONTEXT, slots, 1, 0, options, kv_folder=kv, kv_bytes=1 << 30)
        return load(given, lambda fraction: None)

    return load_with


def form_of(engine: Engine) -> Layout:
    form: Layout = engine._model._layout  # type: ignore[attr-defined]
    return form


def tokens(chance: random.Random, count: int) -> list[int]:
    return [chance.randrange(3, 250) for _ in range(count)]


@pytest.mark.parametrize(("own_cells", "own"), [(3 * 1024, True), (3 * 256, False)])
def test_sequences_that_outgrow_their_cells_go_on_as_they_would_alone(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, own_cells: int, own: bool
) -> None:
    chance = random.Random(1)
    beginning = tokens(chance, 180)
    jobs = [(beginning + tokens(chance, count), 40) for count in (20, 500, 60, 5, 30)]
    alone = start(1)
    expected = [generated(run(alone, [job])[0]) for job in jobs]
    alone.close()
    monkeypatch.setattr(kv_layout, "FIRST_CELLS", 3 * 256)
    monkeypatch.setattr(kv_layout, "OWN_CELLS", own_cells)
    engine = start(3)
    assert form_of(engine) == Layout(3 * 256, own=True)
    said = run(engine, jobs)
    assert [generated(one) for one in said] == expected
    assert form_of(engine).own is own
    assert max(one[0].cached for one in said) >= len(beginning)  # copied from a sequence that others go on with
    longer = [*jobs[4][0], *expected[4], 9, 8, 7]
    assert run(engine, [(longer, 4)])[0][0].cached == len(longer) - 4
    engine.close()


def test_what_was_kept_in_cells_of_its_own_is_taken_by_a_pool_and_back(
    start: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WORTH_SAVING", 32)
    chance, kv = random.Random(2), str(tmp_path / "kv" / "model")
    prompt, after = tokens(chance, 300), tokens(chance, 10)
    pool = {"kv_tokens": 4096}
    alone = start(1)
    expected = generated(run(alone, [([*prompt, *after], 12)])[0])
    alone.close()
    for made, taken in (({}, pool), (pool, {})):
        engine = start(3, f"{kv}-{len(made)}", **made)
        run(engine, [(tokens(chance, 5), 1), (prompt, 30)])
        save(engine)
        engine.close()
        engine = start(2, f"{kv}-{len(made)}", **taken)
        (said,) = run(engine, [([*prompt, *after], 12)])
        engine.close()
        assert generated(said) == expected
        assert said[0].cached == len(prompt)


def test_where_no_more_memory_is_granted_a_long_prompt_fails_by_name_and_others_go_on(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()
    monkeypatch.setattr(kv_cache, "ask_for_memory", lambda bytes: asked.append(bytes))  # and says no
    monkeypatch.setattr(kv_layout, "FIRST_CELLS", 2 * 256)
    monkeypatch.setattr(llamacpp_engine, "DENIED_SECONDS", 0.0)
    chance, engine = random.Random(3), start(2)
    long, short = tokens(chance, 900), tokens(chance, 20)
    said = run(engine, [(long, 5), (short, 5)])
    assert "no room for the KV of 900 tokens" in said[0][-1].failure
    assert len(generated(said[1])) == 5
    assert asked and min(asked) >= 512 * engine.facts.token_bytes
    monkeypatch.setattr(kv_cache, "ask_for_memory", kv_cache.granted)
    assert len(generated(run(engine, [(long, 5)])[0])) == 5
    engine.close()
