"""The OpenVINO toolchain and engine beyond what every engine must do."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.prepare import forget_exports, prepare
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.store import Store
from enginehouse.optimize.toolchains.openvino.toolchain import FAMILIES, TOOLCHAIN
from enginehouse.runtimes.contract import JSON_OBJECT, Engine, JsonSchema, Load, Regex, Sampling
from enginehouse.runtimes.engines.openvino import constraints
from enginehouse.runtimes.engines.openvino.engine import RUNTIME
from enginehouse.runtimes.errors import NotEnforceable, Refused
from enginehouse.runtimes.grammar.json_schema import grammar
from tests.runtimes.engines.test_engine_contract import Jobs, answer, whole

if reason := RUNTIME.unavailable() or TOOLCHAIN.unavailable():
    pytest.skip(reason, allow_module_level=True)

EXACT = {"precision": "f32", "kv_precision": "f32"}
WINDOW = 16  # tokens; the prompts are longer
SHAPES: dict[str, dict[str, Any]] = {
    "MistralForCausalLM": {"sliding_window": WINDOW},
    "Phi3ForCausalLM": {"sliding_window": WINDOW},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "CohereForCausalLM": {"logit_scale": 0.5},
    "GraniteForCausalLM": {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.7},
    "MixtralForCausalLM": {"num_local_experts": 4},
    "PhiForCausalLM": {"num_key_value_heads": 4},
    "Qwen2MoeForCausalLM": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48
    },
    "Qwen3MoeForCausalLM": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 32},
    "SmolLM3ForCausalLM": {"num_hidden_layers": 4},
}  # fmt: skip
ALWAYS = FAMILIES[:6]  # the rest takes too long for every run


def build(source: Path, precision: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    given = resolve(str(source))
    if given.kind == "checkpoint":
        given = export(given, precision, folder.with_name(f"{folder.name}-exported"))
    TOOLCHAIN.build(given, precision, folder, quiet)
    return folder


def export(source: Source, precision: str, folder: Path) -> Source:
    folder.mkdir()
    assert TOOLCHAIN.export
    TOOLCHAIN.export.make(source, TOOLCHAIN.export.precision(source, precision), folder, quiet)
    return resolve(str(folder))


def quiet(stage: str, done: float) -> None: ...


def load(folder: Path, slots: int = 2, context: int = 256, free: int = 0, **options: Any) -> Engine:
    return RUNTIME.load(Load("openvino", str(folder), context, slots, 2, free, EXACT | options), lambda fraction: None)


@pytest.fixture(scope="module")
def ir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 in 32 bits, as someone else might hand it over."""
    return build(checkpoint, "F32", tmp_path_factory.mktemp("ir") / "tiny")


@pytest.fixture(scope="module")
def engine(ir: Path) -> Iterator[Engine]:
    engine = load(ir)
    yield engine
    engine.close()


def reference(checkpoint: Path) -> Any:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def greedy(model: Any, ids: list[int], count: int, **options: Any) -> list[int]:
    import torch

    out = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, eos_token_id=None, **options)
    said: list[int] = out[0][len(ids) :].tolist()
    return said


# --- the toolchain ---


@pytest.mark.parametrize("family", FAMILIES if os.environ.get("ENGINEHOUSE_ALL_FAMILIES") else ALWAYS)
def test_every_family_says_what_the_reference_implementation_says(family: str, tmp_path: Path) -> None:
    from tests.checkpoints import make_checkpoint

    checkpoint = make_checkpoint(tmp_path / "checkpoint", family, **SHAPES.get(family, {}))
    engine, model = load(build(checkpoint, "F32", tmp_path / "ir"), prefill_chunk=32), reference(checkpoint)
    prompts = [list(range(5, 5 + size)) for size in (3, 70)]
    jobs = Jobs(engine)
    for number, ids in enumerate(prompts):
        jobs.add(number, ids, Sampling(max_tokens=20, temperature=0, ignore_eos=True))
    jobs.finish()
    for number, ids in enumerate(prompts):
        assert [token.id for token in jobs.tokens[number]] == greedy(model, ids, 20)
    engine.close()


@pytest.mark.parametrize(
    "precision", ["INT8_ASYM", "INT4_SYM_G32", "INT4_ASYM_G32_AWQ", "INT4_ASYM_G32_AWQ_SE", "INT4_ASYM_G32_MIXED"]
)
def test_a_ready_made_ir_is_compressed_and_still_answers(ir: Path, precision: str, tmp_path: Path) -> None:
    small = build(ir, precision, tmp_path / "small")
    assert (small / "openvino_model.bin").stat().st_size < 0.5 * (ir / "openvino_model.bin").stat().st_size
    assert not [path for path in small.iterdir() if path.is_dir() or path.name.startswith("exported")]
    engine = load(small)
    assert len(answer(engine, "hello", Sampling(max_tokens=8, temperature=0, ignore_eos=True)).tokens[0]) == 8
    engine.close()
    assert "compressed already" in str(TOOLCHAIN.refuses(resolve(str(small))))


def test_several_precisions_are_made_of_one_export_until_no_more_are_wanted(tmp_path: Path, checkpoint: Path) -> None:
    source = resolve(str(checkpoint))

    def prepared(precision: str) -> Path:
        return Path(asyncio.run(prepare(source, TOOLCHAIN, precision, tmp_path, quiet, rules=None)).path)

    small = prepared("INT8_ASYM")
    (export,) = (tmp_path / "intermediate").iterdir()
    before = export.stat().st_ino
    whole = prepared("F32")
    assert [path.stat().st_ino for path in (tmp_path / "intermediate").iterdir()] == [before]
    manifests = {manifest.recipe.precision: manifest for manifest in Store(tmp_path).manifests()}
    assert "convert" in manifests["INT8_ASYM"].seconds
    assert "convert" not in manifests["F32"].seconds
    assert (whole / "openvino_model.bin").samefile(export / "openvino_model.bin"), "no room for it twice"
    forget_exports(source, TOOLCHAIN, "F32", tmp_path)
    assert list((tmp_path / "intermediate").iterdir()) == []
    for folder in (small, whole):
        engine = load(folder)
        assert len(answer(engine, "hello", Sampling(max_tokens=8, temperature=0, ignore_eos=True)).tokens[0]) == 8
        engine.close()


def test_a_mixture_keeps_four_bits_for_the_matrices_that_widen(ir: Path, tmp_path: Path) -> None:
    import openvino

    layers = json.loads((ir / "config.json").read_text())["num_hidden_layers"]
    graph = openvino.Core().read_model(build(ir, "INT4_ASYM_G32_MIXED", tmp_path / "small") / "openvino_model.xml")
    kept = [node.get_element_type().get_type_name() for node in graph.get_ops() if node.get_type_name() == "Constant"]
    assert kept.count("u4") == 2 * 2 * layers  # gate and up, weights and zero points
    assert kept.count("u8") >= 2 * (5 * layers + 1)


def test_a_group_that_does_not_divide_is_refused_with_one_that_does(ir: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match=r"96 wide, no multiple of 64; take a group of 32"):
        build(ir, "INT4_ASYM_G64", tmp_path / "small")
    assert not (tmp_path / "small" / "openvino_model.bin").exists()


def test_a_ready_made_ir_is_never_moved_nor_converted(ir: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="not converted to BF16; serve it as it is"):
        build(ir, "BF16", tmp_path / "other")
    assert (ir / "openvino_model.bin").exists()


def test_a_family_without_the_attention_that_is_exported_is_one_sentence(tmp_path: Path) -> None:
    from tests.checkpoints import make_checkpoint

    source = make_checkpoint(tmp_path / "model", "Gemma2ForCausalLM", head_dim=32)
    sentence = (
        r"^transformers cannot make '.*' ready for OpenVINO: Gemma2ForCausalLM does not support an attention .* yet$"
    )
    with pytest.raises(CannotBuild, match=sentence):
        build(source, "F32", tmp_path / "ir")


def test_a_family_that_was_not_proven_is_on_trial(checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))
    assert TOOLCHAIN.refuses(resolve(str(other))) is None
    assert not TOOLCHAIN.proven(resolve(str(other)))
    assert TOOLCHAIN.proven(resolve(str(checkpoint)))


def test_position_embeddings_that_depend_on_the_length_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_type": "longrope"}}))
    assert "'longrope' position embeddings" in str(TOOLCHAIN.refuses(resolve(str(other))))


@pytest.mark.parametrize("part", ["", "text_config"])
def test_linear_attention_is_refused_before_the_exporter_begins(part: str, checkpoint: Path, tmp_path: Path) -> None:
    """It may come to no end."""
    other = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    layers = {"layer_types": ["linear_attention", "full_attention"]}
    (other / "config.json").write_text(json.dumps(config | ({part: layers} if part else layers)))
    assert "layers of 'linear_attention'" in str(TOOLCHAIN.refuses(resolve(str(other))))


def test_a_checkpoint_without_a_fast_tokenizer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (other / "tokenizer.json").unlink()
    assert "no tokenizer.json" in str(TOOLCHAIN.refuses(resolve(str(other))))


def test_nothing_is_reported_to_its_makers(ir: Path, tmp_path: Path) -> None:
    """Their telemetry keeps its client id in ~/intel."""
    script = f"""
import sys, pathlib
from tests.runtimes.engines.test_openvino import build, load, Path
load(build(Path({str(ir)!r}), "INT8_ASYM", Path({str(tmp_path / "small")!r}))).close()
"""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"HOME": str(home)}, check=True, timeout=300)
    assert not (home / "intel").exists()


# --- loading ---


def test_an_ir_without_its_tokenizer_says_which_file_is_missing(ir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(ir, tmp_path / "other")
    (other / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer.json; copy it from the model"):
        load(other)


def test_an_ir_without_the_tokenizers_own_graphs_answers_under_constraints_too(ir: Path, tmp_path: Path) -> None:
    other = shutil.copytree(ir, tmp_path / "other", ignore=shutil.ignore_patterns("openvino_*tokenizer.*"))
    engine = load(other)
    assert answer(engine, "hello", Sampling(temperature=0, constraint=Regex("[ab]{3}c"))).text(0)[3:] == b"c"
    engine.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "NPU"}, "no continuous batching"),
        ({"device": "GPU.7"}, "no device 'GPU.7'; have: CPU"),
        ({"device": "TPU"}, "no device 'TPU'; have: CPU"),
        ({"kv_tokens": 100}, "less than the context of 256 tokens"),
        ({"free": 1 << 20, "context": 256, "kv_tokens": 1 << 20}, "MiB of memory are free"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(ir: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(ir, **options)


# --- generation ---


def test_a_prompt_left_half_read_spoils_nothing_that_begins_alike(ir: Path) -> None:
    """GenAI marks a page of the KV cache as filled when it is begun."""
    ids, sampling = list(range(5, 105)), Sampling(max_tokens=12, temperature=0, ignore_eos=True)
    tokens = []
    for leave in (False, True):
        engine = load(ir, prefill_chunk=40)
        jobs = Jobs(engine)
        if leave:
            engine.add(1, ids, sampling)
            assert engine.step() == []
            engine.remove(1)
        jobs.add(0, ids, sampling)
        jobs.finish()
        tokens.append([token.id for token in jobs.tokens[0]])
        engine.close()
    assert tokens[0] == tokens[1]


def test_the_reused_tokens_told_are_those_that_were_not_computed(ir: Path) -> None:
    chunk = 2  # prompt tokens of one step
    engine = load(ir, slots=1, prefill_chunk=1)
    told: list[int] = []

    def ask(ids: list[int], count: int) -> list[int]:
        jobs = Jobs(engine)
        jobs.add(0, ids, Sampling(max_tokens=count, temperature=0, ignore_eos=True))
        steps = 0
        while not jobs.tokens[0]:
            jobs.step()
            steps += 1
        jobs.finish()
        cached = jobs.tokens[0][0].cached
        assert steps == -(-(len(ids) - cached) // chunk)
        told.append(cached)
        return [token.id for token in jobs.tokens[0]]

    first = list(range(5, 205))
    said = ask(first, 10)
    ask(first + said[:9] + list(range(5, 25)), 1)
    for _ in range(3):
        ask(first, 1)
    ask(first[:100] + list(range(300, 400)), 1)
    assert told == [0, 209, 192, 199, 199, 96]
    engine.close()


def test_a_repetition_penalty_is_the_reference_implementations(checkpoint: Path, engine: Engine) -> None:
    ids = list(range(5, 25))
    sampling = Sampling(max_tokens=20, temperature=0, ignore_eos=True, repetition_penalty=1.7)
    jobs = Jobs(engine)
    jobs.add(0, ids, sampling)
    jobs.finish()
    model = reference(checkpoint)
    said = [token.id for token in jobs.tokens[0]]
    assert said == greedy(model, ids, 20, repetition_penalty=1.7)
    assert said != greedy(model, ids, 20)


def test_a_stop_token_ends_even_where_the_end_token_does_not(engine: Engine) -> None:
    endless = Sampling(max_tokens=30, temperature=0, ignore_eos=True)
    said = [token.id for token in answer(engine, "hello", endless).tokens[0]]
    stop = said[4]
    sampling = Sampling(max_tokens=30, temperature=0, ignore_eos=True, stop_token_ids=(stop,))
    tokens = answer(engine, "hello", sampling).tokens[0]
    assert [token.id for token in tokens] == [*said[: said.index(stop)], -1]
    assert tokens[-1].finish == "stop"


def test_a_constraint_never_takes_a_special_token_for_the_text_of_its_name(engine: Engine) -> None:
    jobs = answer(engine, "hello", Sampling(temperature=0, constraint=Regex(r"<\|im_start\|>")))
    assert jobs.text(0) == b"<|im_start|>"


def test_min_tokens_under_a_schema_is_refused(engine: Engine) -> None:
    with pytest.raises(Refused) as refused:
        engine.add(0, [5], Sampling(min_tokens=5, constraint=JSON_OBJECT))
    assert refused.value.param == "min_tokens"


@pytest.mark.parametrize("pattern", [r"(?i)abc", r"\p{L}+"])
def test_a_regex_that_xgrammar_cannot_compile_is_refused_and_hurts_nobody(engine: Engine, pattern: str) -> None:
    with pytest.raises(Refused):
        engine.add(0, [5], Sampling(constraint=Regex(pattern)))
    assert answer(engine, "hello", Sampling(temperature=0, constraint=Regex("[ab]{4}"))).tokens[0][-1].finish == "stop"


# --- constraints are tried in another process ---


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def minimums(count: int) -> JsonSchema:
    one = (record(**{f"k_{n}": {"type": "integer", "minimum": n}}) for n in range(count))
    return JsonSchema(json.dumps({"anyOf": [*one]}))


def trial() -> psutil.Process:
    """The process that this one's engine has constraints tried in."""
    found = (child for child in psutil.Process().children() if "openvino.trial_process" in " ".join(child.cmdline()))
    return next(found)


def test_what_takes_too_long_to_compile_is_refused_by_name_and_hurts_nobody(engine: Engine) -> None:
    schema = record(**{f"p{n}": {"type": "string", "maxLength": 3000 + n} for n in range(200)})
    jobs = Jobs(engine)
    jobs.add(0, [5], Sampling(max_tokens=50, temperature=0, ignore_eos=True))
    with pytest.raises(Refused, match=r"too large or too complex for this model's engine") as refused:
        for _ in engine.make_ready(JsonSchema(json.dumps(schema))):
            jobs.step()
    assert (refused.value.param, refused.value.code) == ("response_format", "invalid_constraint")
    jobs.finish()
    assert len(jobs.tokens[0]) == 50
    assert answer(engine, "hello", Sampling(temperature=0, constraint=Regex("[ab]{5}"))).tokens[0][-1].finish == "stop"


def test_the_trials_death_costs_one_constraint_at_most(engine: Engine) -> None:
    whole(engine.make_ready(Regex("[ab]{6}")))
    pieces, first = engine.make_ready(minimums(50)), trial()
    first.suspend()
    next(pieces)
    first.kill()
    with contextlib.suppress(Refused):
        whole(pieces)
    whole(engine.make_ready(minimums(51)))
    assert trial() != first


def test_answers_stay_right_when_compiled_grammars_are_forgotten(ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "GROWN_BYTES", -1)  # at each new one
    engine, patterns = load(ir, slots=3), ["[ab]{40}", "[cd]{40}", "[ab]{39}"]
    jobs = Jobs(engine)
    for number, pattern in enumerate(patterns):
        whole(engine.make_ready(Regex(pattern)))
        jobs.add(number, [5], Sampling(max_tokens=200, temperature=1, seed=number, constraint=Regex(pattern)))
        while not jobs.tokens[number]:
            jobs.step()
    jobs.finish()
    for number, pattern in enumerate(patterns):
        assert re.fullmatch(pattern, jobs.text(number).decode())
    engine.close()


def test_the_trial_ends_with_its_engine(ir: Path) -> None:
    engine = load(ir)
    before = {child.pid for child in psutil.Process().children()}
    whole(engine.make_ready(JSON_OBJECT))
    (process,) = [child for child in psutil.Process().children() if child.pid not in before]
    engine.close()
    process.wait(10)


def test_answers_come_to_their_first_token_while_constraints_are_compiled(ir: Path) -> None:
    """GenAI has one lock for both."""
    engine = load(ir, slots=4)
    jobs, constraint = Jobs(engine), JsonSchema(json.dumps(record(a={"enum": [1, 2]})))
    whole(engine.make_ready(constraint))
    others = [engine.make_ready(minimums(count)) for count in range(100, 103)]
    for number in range(8):
        for pieces in others:
            next(pieces, None)
        jobs.add(number, [5] * 100, Sampling(temperature=0, max_tokens=30, constraint=constraint))
        jobs.step()
    jobs.finish()
    assert all(tokens[-1].finish in ("stop", "length") for tokens in jobs.tokens.values())
    for pieces in others:
        whole(pieces)
    engine.close()


# --- schemas as grammars ---

ENFORCED: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a range over zero": ({"type": "integer", "minimum": -187, "maximum": 12}, lambda v: -187 <= v <= 12),
    "a range over many digits": ({"type": "integer", "minimum": 187, "maximum": 54321}, lambda v: 187 <= v <= 54321),
    "a number above an excluded bound": ({"type": "number", "exclusiveMinimum": 2, "maximum": 3}, lambda v: 2 < v <= 3),
    "a date and time": ({"type": "string", "format": "date-time"}, lambda v: v[10] == "T"),
    "a class with what JSON escapes": ({"type": "string", "pattern": '^["\\\\]{3}$'}, lambda v: set(v) <= set('"\\')),
    "a class of all others": ({"type": "string", "pattern": "^[^a-zß-ÿ]{1,9}$"}, re.compile("[^a-zß-ÿ]*").fullmatch),
    "names beyond ASCII": (
        {"type": "object", "properties": {'ü"k': {"const": "é\\\n🦊"}}, "required": ['ü"k']},
        lambda v: v == {'ü"k': "é\\\n🦊"},
    ),
    "branches told apart by a mark": (
        {
            "oneOf": [
                {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
                for kind in ("cat", "dog")
            ]
        },
        lambda v: v["kind"] in ("cat", "dog"),
    ),
    "a tuple and more": (
        {"type": "array", "prefixItems": [{"type": "null"}], "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 4},
        lambda v: v[0] is None and 2 <= len(v) <= 4 and set(v[1:]) <= {1, 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENFORCED)
def test_a_schema_is_enforced(engine: Engine, name: str) -> None:
    schema, holds = ENFORCED[name]
    jobs = Jobs(engine)
    for seed in range(4):
        constraint = JsonSchema(json.dumps(schema))
        jobs.add(seed, [5], Sampling(max_tokens=200, temperature=1.5, seed=seed, constraint=constraint))
    jobs.finish()
    for seed in range(4):
        assert jobs.tokens[seed][-1].finish == "stop"
        assert holds(json.loads(jobs.text(seed)))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, "'not'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "integer", "multipleOf": 3}, "'multipleOf'"),
        ({"type": "object", "patternProperties": {"^a": {}}}, "'patternProperties'"),
        ({"oneOf": [{"type": "number"}, {"minimum": 3}]}, "'oneOf'"),
        ({"allOf": [{"type": "string"}, {"minLength": 3}]}, "'allOf'"),
        ({"anyOf": [{"type": "string"}], "minLength": 3}, "'minLength' beside 'anyOf'"),
        ({"type": "string", "format": "hostname"}, "'format' 'hostname'"),
        ({"type": "string", "pattern": "^(a)\\1$"}, "'pattern'"),
        ({"type": "number", "minimum": 0.5}, "not whole"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "at least 5 and at most 3"),
        ({"$ref": "#/nowhere"}, "'#/nowhere'"),
        ({"type": "object", "required": ["a"]}, "'required' 'a'"),
        ({"enum": ["a"], "type": "integer"}, "'enum'"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(NotEnforceable, match=named.replace("(", r"\(")):
        grammar(schema)
