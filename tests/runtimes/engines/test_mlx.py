"""MLX beyond the engine contract: families, precisions, windows, and what it refuses."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains.mlx.toolchain import PLANS, TOOLCHAIN
from enginehouse.runtimes.contract import Engine, Load, Regex, Sampling, Token
from enginehouse.runtimes.decoding.batching import KEEP_BEFORE_END
from enginehouse.runtimes.decoding.jobs import Running
from enginehouse.runtimes.decoding.sampling import Sampler
from enginehouse.runtimes.engines.mlx.engine import RUNTIME
from enginehouse.runtimes.engines.mlx.sampling import State, choosing
from enginehouse.runtimes.errors import Refused
from tests.serving import serve

if reason := RUNTIME.unavailable():
    pytest.skip(reason, allow_module_level=True)

CONTEXT = 192
QUESTIONS = ["What is the capital of France?", "Count from 1 to 20", "Repeat: lemon river stone"]
ROPE = {"rope_theta": 50000.0}
YARN = {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}
LINEAR = {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 4.0}}
PLAIN = {"rope_parameters": ROPE | {"rope_type": "default"}}
LLAMA3 = {
    "rope_parameters": ROPE
    | {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}
GEMMA_LINEAR = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 70000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    }
}
HEADS = {"head_dim": 16}
GLM4_MOE = HEADS | {
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "use_qk_norm": True,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("Qwen3ForCausalLM", {}),
    ("Qwen3ForCausalLM", YARN),
    ("LlamaForCausalLM", {}),
    ("LlamaForCausalLM", PLAIN | {"tie_word_embeddings": True}),
    ("LlamaForCausalLM", LLAMA3 | {"attention_bias": True, "mlp_bias": True}),
    ("LlamaForCausalLM", LINEAR),
    ("Qwen2ForCausalLM", YARN),
    ("MistralForCausalLM", YARN),
    ("Phi3ForCausalLM", PLAIN),
    ("Phi3ForCausalLM", {"rope_parameters": ROPE | {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    ("Gemma3ForCausalLM", {}),
    ("Gemma3ForCausalLM", GEMMA_LINEAR | {"sliding_window": 128}),
    ("Qwen3MoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, **HEADS}),
    ("MixtralForCausalLM", {"num_local_experts": 4} | PLAIN),
    ("Olmo2ForCausalLM", PLAIN),
    ("GraniteForCausalLM", {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.7} | PLAIN),
    ("SmolLM3ForCausalLM", {"tie_word_embeddings": False} | PLAIN),
    ("StableLmForCausalLM", PLAIN),
    ("Glm4ForCausalLM", HEADS | PLAIN),
    ("Glm4MoeForCausalLM", GLM4_MOE),
    ("Olmo3ForCausalLM", {"num_hidden_layers": 4, "sliding_window": 128}),
]


def quiet(stage: str, fraction: float) -> None: ...


def convert(source: Path | str, folder: Path, precision: str = "f32") -> Path:
    folder.mkdir(parents=True)
    TOOLCHAIN.build(resolve(str(source)), TOOLCHAIN.precisions[precision], folder, quiet)
    return folder


def load(folder: Path, slots: int = 4, free: int = 0, context: int = CONTEXT, **options: Any) -> Engine:
    return RUNTIME.load(Load("mlx", str(folder), context, slots, 2, free, options), lambda fraction: None)


def run(engine: Engine, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> list[list[Token]]:
    said: dict[int, list[Token]] = {}
    for job, (ids, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        said[job] = []
        engine.add(job, ids, sampling)
    running = set(said)
    while running:
        for token in engine.step():
            said[token.job].append(token)
            if token.finish:
                running.remove(token.job)
    return list(said.values())


def prompt(question: str) -> str:
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens if token.id >= 0]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert("builtin:pocket", tmp_path_factory.mktemp("mlx") / "pocket")


# --- families ---


@pytest.mark.parametrize(("architecture", "config"), CASES)
def test_a_family_answers_as_transformers_does(tmp_path: Path, architecture: str, config: dict[str, Any]) -> None:
    """Three prompts together, the third longer than a window and a chunk; then from what is kept its continuation,
    and another that leaves it in the middle."""
    import torch
    import transformers

    from tests.checkpoints import make_checkpoint

    source = make_checkpoint(tmp_path / "source", architecture, **config)
    engine = load(convert(source, tmp_path / "artifact"), prefill_chunk=16)
    reference = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    def check(prompt: list[int], tokens: list[Token]) -> None:
        said = ids(tokens)
        with torch.no_grad():
            rows = torch.log_softmax(reference(torch.tensor([prompt + said])).logits[0], -1)
        for row, token in zip(rows[len(prompt) - 1 :], tokens, strict=False):
            assert int(row.argmax()) == token.id
            assert float(row[token.id]) == pytest.approx(token.logprob, abs=1e-3)

    prompts = [[5, 6, 7], list(range(40, 52)), list(range(100, 160))]
    greedy = Sampling(max_tokens=24, temperature=0, ignore_eos=True, logprobs=0)
    answers = run(engine, prompts, [greedy] * 3)
    longer = prompts[2] + ids(answers[2]) + [9, 8, 7]
    parted = [*prompts[2][:40], 9, 8, 7]
    (continued,) = run(engine, [longer], [greedy])
    (other,) = run(engine, [parted], [greedy])
    engine.close()
    for ids_, tokens in zip(prompts, answers, strict=True):
        check(ids_, tokens)
    check(longer, continued)
    check(parted, other)
    assert continued[0].cached >= len(prompts[2])
    passed = architecture == "Gemma3ForCausalLM" and config.get("sliding_window") != 128
    assert other[0].cached == (0 if passed else 40)  # a window that moved on cannot go back


@pytest.mark.parametrize("family", ["LFM2", "Qwen3-Next", "Nemotron-H", "Gemma 3"])
def test_a_chat_whose_thoughts_are_left_out_later_is_read_on_from_there(tmp_path: Path, family: str) -> None:
    from tests.bench.families import FAMILIES, VOCABULARY, tokenizer
    from tests.checkpoints import make_checkpoint

    architecture, settings = FAMILIES[family]
    settings = {"vocab_size": VOCABULARY, **settings} | ({"sliding_window": 32} if family == "Gemma 3" else {})
    source = make_checkpoint(tmp_path / "source", architecture, tokenizer=tokenizer(), **settings)
    folder, chance = convert(source, tmp_path / "artifact"), random.Random(3)
    first, after = ([chance.randrange(3, 250) for _ in range(length)] for length in (90, 40))
    greedy = Sampling(max_tokens=12, temperature=0, ignore_eos=True)
    engine, alone = load(folder), load(folder)
    run(engine, [first], [greedy])
    (again,) = run(engine, [[*first, *after]], [greedy])
    assert ids(again) == ids(run(alone, [[*first, *after]], [greedy])[0])
    assert again[0].cached == len(first) - KEEP_BEFORE_END
    engine.close()
    alone.close()


def test_a_hybrid_in_the_words_of_transformers_5_computes_what_it_does(tmp_path: Path) -> None:
    from tests.bench.families import compare, make

    make("Granite 4", tmp_path / "model")
    assert compare("mlx", tmp_path)["largest"] < 0.001


def changed(**entries: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | entries))

    return apply


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


REFUSALS: list[tuple[Callable[[Path], None], str]] = [
    (changed(model_type="from_next_year"), "mlx_lm has no model of type 'from_next_year'"),
    (changed(quantization_config={"quant_method": "gptq"}), "quantized already"),
    (changed(rope_parameters=ROPE | {"rope_type": "longrope"}), "'longrope' positions of 'qwen3'"),
    (changed(rope_parameters=ROPE | {"rope_type": "yarn", "attention_factor": 1.5}), "with 'attention_factor'"),
    (changed(partial_rotary_factor=0.5), "with 'partial_rotary_factor'"),
    (changed(hidden_act="gelu"), "the model wants 'gelu'"),
    (changed(sliding_window=64, use_sliding_window=True), "looks back 64 of its 256 tokens"),
    (without("tokenizer.json"), "has no tokenizer.json"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSALS)
def test_what_mlx_lm_would_compute_otherwise_is_refused(
    tmp_path: Path, checkpoint: Path, change: Callable[[Path], None], sentence: str
) -> None:
    import shutil

    folder = tmp_path / "changed"
    shutil.copytree(checkpoint, folder)
    change(folder)
    assert sentence in (TOOLCHAIN.refuses(resolve(str(folder))) or "")
    with pytest.raises(CannotBuild, match=r"mlx_lm|model|checkpoint"):
        convert(folder, tmp_path / "artifact")


# --- precisions ---


def test_what_mlx_lm_says_of_a_layout_it_does_not_know_is_one_short_sentence(tmp_path: Path) -> None:
    from tests.checkpoints import make_checkpoint

    checkpoint = make_checkpoint(tmp_path / "checkpoint", "Llama4ForCausalLM", num_hidden_layers=4, num_local_experts=4)
    with pytest.raises(CannotBuild, match=r"^mlx_lm cannot read the checkpoint: [^\n]{1,200}$"):
        convert(checkpoint, tmp_path / "mlx")


@pytest.mark.parametrize("precision", PLANS)
def test_every_precision_is_built_and_packed_as_it_says(tmp_path: Path, precision: str) -> None:
    folder = convert("builtin:pocket", tmp_path / "artifact", precision)
    source, plan = resolve("builtin:pocket"), PLANS[precision]
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size <= TOOLCHAIN.needs_bytes(source, precision)
    config = json.loads((folder / "config.json").read_text())
    packing = config.get("quantization", {})
    assert (packing.get("bits"), packing.get("group_size")) == ((plan.bits, plan.group) if plan.bits else (None, None))
    assert any(isinstance(entry, dict) for entry in packing.values()) == bool(plan.mixture or plan.others)
    assert all(file.is_file() for file in folder.iterdir())
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {f.name for f in folder.iterdir()}
    assert resolve(str(folder)).kind == ("mlx" if plan.bits else "checkpoint")


def test_eight_bits_are_near_the_whole_and_four_bits_are_a_third_of_sixteen(pocket: Path, tmp_path: Path) -> None:
    whole, eight = load(pocket), load(convert("builtin:pocket", tmp_path / "8", "int8"))
    sampling = Sampling(max_tokens=1, temperature=0, logprobs=0)
    prompts = [whole.encode(prompt(question)) for question in QUESTIONS]
    for exact, packed in zip(run(whole, prompts, [sampling] * 3), run(eight, prompts, [sampling] * 3), strict=True):
        assert exact[0].logprob == pytest.approx(packed[0].logprob, abs=0.1)
    weights = (convert("builtin:pocket", tmp_path / "4", "int4") / "model.safetensors").stat().st_size
    assert weights < 0.32 * (convert("builtin:pocket", tmp_path / "16", "bf16") / "model.safetensors").stat().st_size


def test_layers_that_groups_do_not_divide_are_named_and_none_at_all_is_refused(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(checkpoint, tmp_path / "some", "int4")
    assert "2 of 15 layers stay in 16 bits, groups of 64 do not divide their width: model.layers.0.mlp.down_proj" in (
        capsys.readouterr().err
    )
    from tests.checkpoints import make_checkpoint

    narrow = make_checkpoint(tmp_path / "narrow", "LlamaForCausalLM")
    with pytest.raises(CannotBuild, match="no layer can be quantized in groups of 128"):
        convert(narrow, tmp_path / "none", "4bit-g128")


def test_weights_that_overflow_are_not_published(tmp_path: Path) -> None:
    import safetensors.torch

    from tests.checkpoints import make_checkpoint

    source = make_checkpoint(tmp_path / "source", "LlamaForCausalLM")
    weights = safetensors.torch.load_file(source / "model.safetensors")
    weights["model.norm.weight"] *= 1e6
    safetensors.torch.save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CannotBuild, match="overflow"):
        convert(source, tmp_path / "artifact", "f16")


# --- loading ---


def test_a_worker_imports_neither_transformers_nor_torch(pocket: Path) -> None:
    program = (
        "import sys; from enginehouse.runtimes.contract import Load\n"
        "from enginehouse.runtimes.engines.mlx import RUNTIME\n"
        f"engine = RUNTIME.load(Load('mlx', {str(pocket)!r}, 64, 1, 1, 0), lambda fraction: None)\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_progress_of_loading_is_told_to_its_end(pocket: Path) -> None:
    seen: list[float] = []
    RUNTIME.load(Load("mlx", str(pocket), 64, 1, 1, 0), seen.append).close()
    assert seen[-1] == 1.0


def test_what_cannot_be_loaded_is_said_in_a_sentence(pocket: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit the 20 MiB of memory .*kv_tokens"):
        load(pocket, free=20 << 20)
    with pytest.raises(ValueError, match="kv_tokens 64 is less than the context of 192 tokens"):
        load(pocket, kv_tokens=64)


# --- the step loop ---


def test_a_job_sent_back_goes_on_with_its_seed_penalties_and_constraint(pocket: Path) -> None:
    samplings = [
        Sampling(max_tokens=90, temperature=1.5, seed=1, ignore_eos=True, top_p=0.9, top_k=50, min_p=0.01),
        Sampling(max_tokens=90, temperature=1.0, seed=2, ignore_eos=True, presence_penalty=0.5, frequency_penalty=0.3),
        Sampling(max_tokens=90, temperature=0.8, seed=3, ignore_eos=True, repetition_penalty=1.3, logprobs=2),
        Sampling(max_tokens=90, temperature=1.0, seed=4, constraint=Regex("[a-z ]{200}"), min_tokens=5),
    ]
    roomy, tight = load(pocket, slots=1), load(pocket, kv_tokens=CONTEXT)
    prompts = [roomy.encode(prompt(question)) for question in [*QUESTIONS, "Who are you?"]]
    alone = [run(roomy, [asked], [sampling])[0] for asked, sampling in zip(prompts, samplings, strict=True)]
    together = run(tight, prompts, samplings)
    roomy.close()
    tight.close()
    assert [ids(tokens) for tokens in together] == [ids(tokens) for tokens in alone]
    assert [t.logprob for t in together[2]] == pytest.approx([t.logprob for t in alone[2]], abs=1e-3)


def test_a_long_prompt_does_not_hold_up_a_running_answer(pocket: Path) -> None:
    engine = load(pocket, prefill_chunk=16)
    engine.add(0, engine.encode("hello"), Sampling(max_tokens=100, temperature=0, ignore_eos=True))
    while not engine.step():
        pass
    engine.add(1, engine.encode("river stone " * 40), Sampling(max_tokens=2, temperature=0))
    said = [token.job for _ in range(5) for token in engine.step()]
    engine.close()
    assert said == [0] * 5


def test_what_is_kept_and_what_runs_stay_within_the_memory_that_was_asked_for(pocket: Path) -> None:
    """One long sequence beside sixteen short ones, each of which leaves its KV behind."""
    import mlx.core as mx

    from enginehouse.runtimes.engines.mlx.engine import measure

    engine = load(pocket, context=2048, kv_tokens=2048)
    before = mx.get_active_memory()
    long = Sampling(max_tokens=80, temperature=0, ignore_eos=True)
    short = Sampling(max_tokens=10, temperature=0, ignore_eos=True)
    prompts = [engine.encode("river stone " * 250)]
    prompts += [engine.encode(f"Question {number} about the fox, the river and the stone") for number in range(16)]
    run(engine, prompts, [long] + [short] * 16)
    taken = mx.get_active_memory() - before
    assert taken <= measure(engine._model).token_bytes * 2048  # type: ignore[attr-defined]
    engine.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.5, top_k=5),
        Sampling(temperature=1.2, top_p=0.7),
        Sampling(temperature=1.5, top_k=8, top_p=0.9, min_p=0.2),
    ],
)
def test_tokens_are_drawn_as_the_sampler_of_the_other_engines_draws_them(sampling: Sampling) -> None:
    import mlx.core as mx
    import msgspec
    import numpy as np

    size, draws, sure = 16, 1500, 30_000
    logits = np.random.default_rng(0).normal(0, 2, size).astype(np.float32)
    reference = Sampler(msgspec.structs.replace(sampling, seed=0), [0], [])
    counts = np.bincount([reference.choose(logits.copy()).token for _ in range(sure)], minlength=size)
    expected = counts * draws / sure
    drawn = np.zeros(size)
    for seed in range(draws):
        running = Running[State](0, [0], msgspec.structs.replace(sampling, seed=seed), frozenset(), 0)
        running.state = State(seed, None)
        choose, (adjust,) = choosing(running, size)
        row = adjust(mx.array([0]), mx.array(logits[None]))
        drawn[choose(row - mx.logsumexp(row, -1, keepdims=True)).item()] += 1
    assert (abs(drawn - expected) <= 5 * np.sqrt(np.maximum(expected, 1))).all()
    if sampling.top_k:
        assert set(np.flatnonzero(drawn)) == set(np.flatnonzero(expected))


# --- through the server ---


def test_a_ready_made_folder_is_served_as_it_is(folder: Path, tmp_path: Path) -> None:
    ready = convert("builtin:pocket", tmp_path / "ready", "int8")
    models = {"ready": {"source": str(ready), "runtime": "mlx"}}
    with serve(folder, models) as served:
        reply = served.client.chat.completions.with_raw_response.create(
            model="ready", messages=[{"role": "user", "content": QUESTIONS[0]}], temperature=0, max_tokens=8
        )
        assert reply.headers["x-enginehouse-runtime"] == "mlx"
        assert reply.parse().choices[0].message.content


def test_an_id_beyond_the_vocabulary_is_refused_before_mlx_sees_it(pocket: Path) -> None:
    engine = load(pocket)
    with pytest.raises(Refused):
        engine.add(0, [engine.facts.vocabulary], Sampling())
    engine.close()
