"""Which runtime serves a model, and why the others do not."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.config.schema import Model
from enginehouse.optimize.artifact import Source
from enginehouse.runtimes.contract import Device
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.routing import (
    PRIOR,
    Candidate,
    Decision,
    Figures,
    Held,
    Objective,
    Offer,
    Parked,
    decide,
    evictions,
    pick,
    why_none,
)

CHECKPOINT = Source("m", "checkpoint", "/m", "Qwen3ForCausalLM", 4096, 600_000_000, 1, "f")
GGUF = Source("m.gguf", "gguf", "/m.gguf", "qwen3", 4096, 600_000_000, 1, "f")
ALL = ("logit_bias", "regex", "top_logprobs")
LADDER, STEPS = ("Q4_K_M", "Q8_0", "BF16"), ("INT4", "INT8", "BF16")
LLAMACPP = Offer("llamacpp", "gguf", None, {"int4": "Q4_K_M", "int8": "Q8_0", "Q4_K_M": "Q4_K_M"}, LADDER, features=ALL)
OPENVINO = Offer("openvino", "openvino", None, {"int4": "INT4", "int8": "INT8"}, STEPS, features=("regex",))
ONNX = Offer("onnx", "onnx", None, {"int4": "INT4", "int8": "INT8"}, STEPS, features=ALL)
MLX = Offer("mlx", "mlx", None, {"int4": "INT4", "int8": "INT8"}, STEPS, features=ALL)
ECHO = Offer("echo", "echo", None)
OFFERS = [ECHO, MLX, ONNX, OPENVINO, LLAMACPP]
QUICK = Figures(400, 50, 120, 8, 1.0, 0.5, 900 << 20)


def decided(
    model: Model | None = None, source: Source = CHECKPOINT, offers: list[Offer] = OFFERS, **known: Any
) -> Decision:
    return decide("m", model or Model("m"), source, offers, known.pop("host", "arm"), **known)


def keys(decision: Decision) -> list[str]:
    return [ranked.candidate.key for ranked in decision.ranked]


def no(model: Model, source: Source = CHECKPOINT, offers: list[Offer] = OFFERS) -> str:
    decision = decided(model, source, offers)
    assert not decision.ranked
    return why_none(decision, model, [offer.runtime for offer in offers], {})


# --- candidates ---


MISS = "is below the quality bar: divergence 0.3 is above 0.1"


def test_auto_takes_the_smallest_artifact_that_is_not_known_to_be_below_the_bar() -> None:
    assert keys(decided(offers=[LLAMACPP])) == ["llamacpp/cpu/Q4_K_M"]
    stepped = decided(offers=[msgspec.structs.replace(LLAMACPP, below={"Q4_K_M": MISS})])
    assert keys(stepped) == ["llamacpp/cpu/Q8_0"]
    assert [r.reason for r in stepped.rejected] == [f"Q4_K_M {MISS}"]


def test_a_runtime_none_of_whose_artifacts_passed_serves_nothing() -> None:
    offer = msgspec.structs.replace(LLAMACPP, below=dict.fromkeys(LADDER, MISS))
    assert f"Q4_K_M {MISS}; Q8_0 {MISS}; BF16 {MISS}" in no(Model("m"), offers=[offer])


def test_a_pinned_precision_below_the_bar_serves_with_a_warning_or_not_at_all() -> None:
    offer, pinned = msgspec.structs.replace(LLAMACPP, below={"Q4_K_M": MISS}), Model("m", precision="int4")
    (warned,) = decided(pinned, offers=[offer]).ranked
    assert f"warning: Q4_K_M {MISS}" in warned.reason
    refused = decided(pinned, offers=[offer], enforce=True)
    assert not refused.ranked
    assert "optimize.quality is 'enforce'; set precision: auto" in refused.rejected[0].reason


def test_what_may_stand_in_is_the_unquantized_model_on_the_same_runtimes() -> None:
    decision = decided(offers=[LLAMACPP, OPENVINO])
    assert [r.candidate.key for r in decision.unquantized] == ["llamacpp/cpu/BF16", "openvino/cpu/BF16"]
    (itself,) = decided(Model("m", precision="int4"), GGUF, [LLAMACPP]).unquantized
    assert itself.candidate.key == "llamacpp/cpu/as-is"


def test_a_pinned_precision_is_taken_in_any_case_of_letters() -> None:
    assert keys(decided(Model("m", precision="q4_k_m"))) == ["llamacpp/cpu/Q4_K_M"]


def test_a_ready_artifact_is_used_as_it_is() -> None:
    ready = Source("m", "openvino", "/m", "", 4096, 0, 1, "f")
    assert keys(decided(source=ready)) == ["openvino/cpu/as-is"]


def test_a_gguf_file_is_served_as_it_is_before_what_could_be_made_of_it() -> None:
    for host in ("other", "arm"):
        first, *others = keys(decided(source=GGUF, host=host))
        assert first == "llamacpp/cpu/as-is"
        assert others[0] == "openvino/cpu/INT4"
    refusing = msgspec.structs.replace(OPENVINO, cannot_build="'mamba' models are not read from gguf files here")
    decision = decided(source=GGUF, offers=[LLAMACPP, refusing])
    assert keys(decision) == ["llamacpp/cpu/as-is"]
    assert decision.rejected[0].reason == "'mamba' models are not read from gguf files here"


def test_an_unknown_precision_is_refused_with_those_there_are() -> None:
    assert "unknown precision 'int3'; have: auto, int4, int8, Q4_K_M" in no(Model("m", precision="int3"))


def test_an_unknown_runtime_is_refused_with_those_there_are() -> None:
    have = "echo, llamacpp, mlx, onnx, openvino"
    assert no(Model("m", runtime="mxl")) == f"unknown runtime 'mxl'; have: {have}"


def test_every_runtime_passed_over_has_its_reason() -> None:
    absent = msgspec.structs.replace(LLAMACPP, unavailable="llama-cpp-python is not installed")
    reason = no(Model("m"), offers=[ECHO, absent])
    assert "llamacpp: llama-cpp-python is not installed" in reason
    assert "echo: not chosen on this kind of host" in reason
    decision = decided()
    assert {r.candidate.runtime for r in decision.ranked} | {r.runtime for r in decision.rejected} == {
        offer.runtime for offer in OFFERS
    }


def test_what_the_toolchain_refuses_is_no_candidate() -> None:
    refusing = msgspec.structs.replace(LLAMACPP, cannot_build="architecture 'Mamba' is not known")
    assert "architecture 'Mamba' is not known" in no(Model("m"), offers=[refusing])


def test_echo_serves_only_what_is_made_for_it() -> None:
    echo = Source("builtin:echo", "echo", "", "", 0, 0, 0, "e")
    assert keys(decided(Model("builtin:echo"), echo)) == ["echo/cpu/as-is"]
    assert "loads echo, which cannot be made of 'm'" in no(Model("m", runtime="echo"))


def test_each_device_is_a_candidate_the_gpu_first_and_a_broken_one_has_its_reason() -> None:
    devices = (
        Device("CPU", "cpu"),
        Device("NPU", "npu"),
        Device("GPU.0", "gpu"),
    )
    offer = msgspec.structs.replace(OPENVINO, devices=devices)
    assert [r.candidate.device for r in decided(offers=[offer]).ranked] == ["gpu", "cpu", "npu"]
    broken = msgspec.structs.replace(OPENVINO, devices=(Device("GPU.0", "gpu", unavailable="no driver"),))
    assert "no driver" in no(Model("m"), offers=[broken])


# --- the prior, and measurements ---


@pytest.mark.parametrize("host", PRIOR)
def test_without_figures_the_prior_of_the_host_decides_and_mlx_serves_only_apple(host: str) -> None:
    order = [r.candidate.runtime for r in decided(host=host).ranked]
    assert order == list(PRIOR[host])
    assert ("mlx" in order) == (host == "apple")


def test_mlx_serves_elsewhere_when_pinned() -> None:
    assert keys(decided(Model("m", runtime="mlx"))) == ["mlx/cpu/INT4"]


OBJECTIVES: dict[Objective, str] = {
    "latency": "onnx/cpu/INT4",
    "throughput": "openvino/cpu/INT4",
    "memory": "llamacpp/cpu/Q4_K_M",
    "balanced": "onnx/cpu/INT4",
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_measured_candidates_are_ranked_by_what_best_means(objective: Objective) -> None:
    figures = {
        "llamacpp/cpu/Q4_K_M": Figures(220, 40, 55, 8, 2.3, 0.5, 700 << 20),
        "openvino/cpu/INT4": Figures(460, 30, 130, 8, 1.1, 1.5, 900 << 20),
        "onnx/cpu/INT4": Figures(260, 51, 116, 8, 1.9, 1.0, 1100 << 20),
    }
    decision = decided(objective=objective, figures=figures)
    assert keys(decision)[0] == OBJECTIVES[objective]
    assert f"measured on this host: {objective} cost" in decision.ranked[0].reason


def test_a_lone_measurement_of_the_second_choice_does_not_displace_the_first() -> None:
    assert keys(decided(figures={"onnx/cpu/INT4": QUICK}))[0] == "llamacpp/cpu/Q4_K_M"
    both = {"onnx/cpu/INT4": QUICK, "llamacpp/cpu/Q4_K_M": msgspec.structs.replace(QUICK, decode=20)}
    assert keys(decided(figures=both)) == ["onnx/cpu/INT4", "llamacpp/cpu/Q4_K_M", "openvino/cpu/INT4"]


def test_more_bits_serve_where_they_were_measured_to_be_quicker_by_more_than_noise() -> None:
    slow = {"llamacpp/cpu/Q4_K_M": QUICK}
    offers = [LLAMACPP]
    assert [asked.candidate.key for asked in (decided(figures=slow, offers=offers).unmeasured,) if asked] == [
        "llamacpp/cpu/Q8_0"
    ]
    for decode, first, rejected in ((100, "Q8_0", []), (51, "Q4_K_M", ["Q8_0 costs 4.58 (balanced), Q4_K_M 4.63"])):
        both = slow | {"llamacpp/cpu/Q8_0": msgspec.structs.replace(QUICK, decode=decode)}
        decision = decided(figures=both, offers=offers)
        assert keys(decision)[0] == f"llamacpp/cpu/{first}"
        assert [r.reason for r in decision.rejected] == rejected
        assert decision.unmeasured is None
    quick = slow | {"llamacpp/cpu/Q8_0": msgspec.structs.replace(QUICK, decode=100)}
    parked = {"llamacpp/cpu/Q8_0": Parked("parked until 12:00:00: died 3 times", "/home/me")}
    decision = decided(figures=quick, offers=offers, parked=parked)
    assert keys(decision) == ["llamacpp/cpu/Q4_K_M"]
    assert [r.reason for r in decision.rejected] == [parked["llamacpp/cpu/Q8_0"].in_full]


def test_more_bits_are_not_measured_where_a_precision_is_pinned_or_they_failed_the_gate() -> None:
    slow = {"llamacpp/cpu/Q4_K_M": QUICK}
    assert decided(Model("m", precision="int4"), offers=[LLAMACPP], figures=slow).unmeasured is None
    below = msgspec.structs.replace(LLAMACPP, below={"Q8_0": MISS})
    wider = decided(offers=[below], figures=slow).unmeasured
    assert wider and wider.candidate.precision == "BF16"


def test_a_parked_candidate_is_passed_over_unless_there_is_no_other() -> None:
    parked = {"llamacpp/cpu/Q4_K_M": Parked("parked until 12:00:00: died 3 times", "/home/me")}
    decision = decided(parked=parked)
    assert keys(decision)[0] == "openvino/cpu/INT4"
    assert any(r.reason == parked["llamacpp/cpu/Q4_K_M"].in_full for r in decision.rejected)
    alone = decided(offers=[LLAMACPP], parked=parked)
    assert keys(alone) == ["llamacpp/cpu/Q4_K_M"]
    assert "died 3 times" in alone.ranked[0].reason
    assert "/home" not in alone.ranked[0].reason, "every client is told the reason"


# --- what a request needs ---

OPENVINO_FIRST = decide("m", Model("m"), CHECKPOINT, OFFERS, "intel")
BIAS = [("logit_bias", "logit_bias")]


def test_a_request_goes_to_the_first_that_has_what_it_needs() -> None:
    first = pick(OPENVINO_FIRST, [("regex", "response_format")], {}, strict=True)
    assert first and first.candidate.runtime == "openvino"
    detour = pick(OPENVINO_FIRST, BIAS, {}, strict=False)
    assert detour and detour.candidate.runtime == "llamacpp"


def test_strict_forbids_the_detour_and_says_who_would_serve_it() -> None:
    with pytest.raises(Refused) as refused:
        pick(OPENVINO_FIRST, BIAS, {}, strict=True)
    assert refused.value.param == "logit_bias"
    assert "served by: llamacpp, onnx" in refused.value.message


def test_what_no_candidate_has_is_refused_by_name() -> None:
    with pytest.raises(Refused) as refused:
        pick(decided(offers=[OPENVINO]), BIAS, {}, strict=False)
    assert refused.value.param == "logit_bias"
    assert "none of its engines honours it" in refused.value.message


def test_a_candidate_that_failed_in_this_request_is_not_tried_again() -> None:
    tried: Mapping[str, str] = {"openvino/cpu/INT4": "broken"}
    second = pick(OPENVINO_FIRST, [], tried, strict=False)
    assert second and second.candidate.runtime == "llamacpp"
    assert pick(OPENVINO_FIRST, [], dict.fromkeys(keys(OPENVINO_FIRST), "broken"), strict=False) is None


# --- memory ---

HELD = st.lists(
    st.builds(
        Held,
        st.tuples(st.text("abc", min_size=1, max_size=3), st.just("x")),
        st.integers(1, 50),
        st.booleans(),
        st.floats(0, 100),
    ),
    max_size=6,
    unique_by=lambda held: held.key,
)


@given(HELD, st.integers(0, 150))
def test_evictions_make_room_spare_the_busy_and_take_no_more_than_needed(held: list[Held], needed: int) -> None:
    budget = 150
    room = budget - sum(one.bytes for one in held)
    gone = evictions(needed, budget, held)
    idle = {one.key: one for one in held if not one.busy}
    if gone is None:
        assert room + sum(one.bytes for one in idle.values()) < needed
        return
    assert set(gone) <= idle.keys()
    freed = [idle[key].bytes for key in gone]
    assert room + sum(freed) >= needed
    assert not freed or room + sum(freed[:-1]) < needed
    oldest = sorted(idle.values(), key=lambda one: one.used)
    assert [idle[key].used for key in gone] == [one.used for one in oldest[: len(gone)]]


def test_candidates_of_one_model_have_different_keys() -> None:
    assert Candidate("onnx", "cpu", "onnx", "F32").key != Candidate("onnx", "gpu", "onnx", "F32").key
