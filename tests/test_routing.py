"""Which runtime serves a model, and why the others do not."""

from config.schema import Model
from optimize.recipe import Source
from runtimes.routing import Candidate, Offer, choose

CHECKPOINT = Source("m", "checkpoint", "/m", "Qwen3ForCausalLM", 4096, 600_000_000, 1, "f")
LARGE = Source("m", "checkpoint", "/m", "Qwen3ForCausalLM", 4096, 8_000_000_000, 1, "f")
GGUF = Source("m.gguf", "gguf", "/m.gguf", "qwen3", 4096, 600_000_000, 1, "f")
LLAMACPP = Offer("llamacpp", "gguf", None, {"int4": "Q4_K_M", "int8": "Q8_0", "Q4_K_M": "Q4_K_M"})
ECHO = Offer("echo", "echo", None)
OFFERS = [ECHO, LLAMACPP]


def test_a_small_model_gets_eight_bits_and_a_large_one_four() -> None:
    assert choose(Model("m"), CHECKPOINT, OFFERS).candidate == Candidate("llamacpp", "gguf", "Q8_0")
    assert choose(Model("m"), LARGE, OFFERS).candidate == Candidate("llamacpp", "gguf", "Q4_K_M")


def test_a_pinned_precision_is_taken_in_any_case_of_letters() -> None:
    assert choose(Model("m", precision="q4_k_m"), CHECKPOINT, OFFERS).candidate == Candidate(
        "llamacpp", "gguf", "Q4_K_M"
    )


def test_a_ready_artifact_is_used_as_it_is() -> None:
    assert choose(Model("m"), GGUF, OFFERS).candidate == Candidate("llamacpp", "gguf", "")


def test_an_unknown_precision_is_refused_with_those_there_are() -> None:
    choice = choose(Model("m", precision="int3"), CHECKPOINT, OFFERS)
    assert choice.candidate is None
    assert "unknown precision 'int3'; have: auto, int4, int8, Q4_K_M" in choice.reason


def test_an_unknown_runtime_is_refused_with_those_there_are() -> None:
    assert choose(Model("m", runtime="mxl"), CHECKPOINT, OFFERS).reason == "unknown runtime 'mxl'; have: echo, llamacpp"


def test_every_runtime_passed_over_has_its_reason() -> None:
    absent = Offer("llamacpp", "gguf", "llama-cpp-python is not installed")
    choice = choose(Model("m"), CHECKPOINT, [ECHO, absent])
    assert choice.candidate is None
    assert "llamacpp: llama-cpp-python is not installed" in choice.reason
    assert "echo: loads echo, which cannot be made of 'm'" in choice.reason


def test_what_the_toolchain_refuses_is_no_candidate() -> None:
    refusing = Offer("llamacpp", "gguf", None, LLAMACPP.precisions, "architecture 'Mamba' is not known")
    assert "architecture 'Mamba' is not known" in choose(Model("m"), CHECKPOINT, [refusing]).reason


def test_echo_serves_only_what_is_made_for_it() -> None:
    assert choose(
        Model("builtin:echo"), Source("builtin:echo", "echo", "", "", 0, 0, 0, "e"), OFFERS
    ).candidate == Candidate("echo", "echo", "")
    assert choose(Model("m", runtime="echo"), CHECKPOINT, OFFERS).candidate is None
