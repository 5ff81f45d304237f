"""Small random checkpoints of many families, each through every engine: who converts it and how far what the engine
computes is from transformers in 32 bits, or the sentence that refuses it. Keeps what it finds in docs/families.json.

`python -m tests.bench.families [--runtimes NAME ...] [--families NAME ...]`, then with `--page` for docs/families.md.
Each pair runs in a process of its own: some die, and some never end.
"""

import argparse
import multiprocessing
import tempfile
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tokenizers

from enginehouse.optimize.artifact import CannotBuild, Source, Toolchain
from enginehouse.optimize.child_process import MESSAGE_LETTERS
from enginehouse.optimize.quality.reference_runner import Transformers
from enginehouse.optimize.quality.references import log_softmax
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.pool.host import processor
from tests.bench.family_results import LARGE, Computed, Refused, read, write, write_page
from tests.checkpoints import CORPUS, byte_level_tokenizer, make_checkpoint

TOKENS = 200
PATIENCE_SECONDS = 300
VOCABULARY = 480  # the tokenizer has as many tokens: some families pad to a multiple of 8, others cut what is beyond
HEAD = {"head_dim": 32}
MOE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "norm_topk_prob": True}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 32}
FOUR = {"num_hidden_layers": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 3": ("LlamaForCausalLM", {}),
    "Llama 4": ("Llama4ForCausalLM", {**FOUR, **HEAD, "intermediate_size_mlp": 96, "num_local_experts": 4}),
    "Mistral": ("MistralForCausalLM", {**HEAD, "sliding_window": None}),
    "Ministral 3": ("Ministral3ForCausalLM", HEAD),
    "Mixtral": ("MixtralForCausalLM", {"num_local_experts": 4}),
    "Qwen2": ("Qwen2ForCausalLM", {}),
    "Qwen3": ("Qwen3ForCausalLM", HEAD),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", {**HEAD, **MOE, "num_experts": 4}),
    "Qwen3-Next": (
        "Qwen3NextForCausalLM",
        {**FOUR, **HEAD, **MOE, "num_experts": 4, "shared_expert_intermediate_size": 32, "linear_key_head_dim": 32,
         "linear_value_head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    ),
    "Qwen3.5": (
        "Qwen3_5ForCausalLM",
        {**FOUR, **HEAD, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4},
    ),
    "Gemma 2": ("Gemma2ForCausalLM", {**HEAD, "query_pre_attn_scalar": 32, "sliding_window": 64}),
    "Gemma 3": ("Gemma3ForCausalLM", {}),
    "Gemma 3n": (
        "Gemma3nForCausalLM",
        {**HEAD, "num_hidden_layers": 10, "intermediate_size": 4096, "num_kv_shared_layers": 0, "laurel_rank": 64,
         "hidden_size_per_layer_input": 256, "activation_sparsity_pattern": [0.95] * 10, "sliding_window": 64,
         "vocab_size_per_layer_input": VOCABULARY},
    ),
    "Gemma 4": (
        "Gemma4ForCausalLM",
        {**HEAD, "num_hidden_layers": 6, "hidden_size_per_layer_input": 32, "sliding_window": 64,
         "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 64},
    ),
    "Phi-3": ("Phi3ForCausalLM", {"original_max_position_embeddings": 256}),
    "gpt-oss without YaRN": (
        "GptOssForCausalLM",
        {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64,
         "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}},
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
    ),
    "SmolLM3": ("SmolLM3ForCausalLM", {**FOUR, "use_sliding_window": False}),
    "Granite 3": ("GraniteForCausalLM", {"logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "Granite 4": (
        "GraniteMoeHybridForCausalLM",
        {**FOUR, **MAMBA, "layer_types": ["mamba", "mamba", "mamba", "attention"], "num_local_experts": 4,
         "num_experts_per_tok": 2, "shared_intermediate_size": 64, "position_embedding_type": "nope"},
    ),
    "OLMo 2": ("Olmo2ForCausalLM", {}),
    "OLMo 3": ("Olmo3ForCausalLM", {**FOUR, "sliding_window": 64}),
    "GLM-4": ("Glm4ForCausalLM", {"head_dim": 16}),
    "GLM-4.5": (
        "Glm4MoeForCausalLM",
        {**HEAD, **MOE, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": True},
    ),
    "DeepSeek V3": (
        "DeepseekV3ForCausalLM",
        {**MOE, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
         "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
         "num_key_value_heads": 4},
    ),
    "LFM2": ("Lfm2ForCausalLM", {**FOUR, "layer_types": ["conv", "conv", "full_attention", "conv"], "block_dim": 64}),
    "Nemotron-H": (
        "NemotronHForCausalLM",
        {**FOUR, **HEAD, "layers_block_type": ["mamba", "mlp", "attention", "mlp"], "ssm_state_size": 16,
         "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 32,
         "rms_norm_eps": 1e-5},
    ),
    "Falcon-H1": ("FalconH1ForCausalLM", {**MAMBA, "head_dim": 16, "mamba_d_ssm": 128}),
    "StableLM": ("StableLmForCausalLM", {}),
    "Cohere": ("CohereForCausalLM", {"logit_scale": 0.5}),
    "Command R7B": ("Cohere2ForCausalLM", {**FOUR, "head_dim": 16, "sliding_window": 64, "logit_scale": 0.5}),
    "ERNIE 4.5": ("Ernie4_5ForCausalLM", {"head_dim": 16}),
    "EXAONE 4": ("Exaone4ForCausalLM", {"head_dim": 16, "sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "Hunyuan": ("HunYuanDenseV1ForCausalLM", HEAD),
    "Mamba": ("MambaForCausalLM", {"state_size": 16, "intermediate_size": 128}),
    "Mamba 2": (
        "Mamba2ForCausalLM",
        {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 32, "intermediate_size": 128},
    ),
}  # fmt: skip


def main(names: list[str], engines: list[str]) -> None:
    multiprocessing.set_forkserver_preload(["tests.bench.families"])  # torch takes seconds each time
    results = read()
    results.processor = processor()
    results.reference = {name: version(name) for name in ("transformers", "torch")}
    for name in names:
        with tempfile.TemporaryDirectory() as work:
            made = apart(make, name, Path(work) / "model")
            if isinstance(made, Failure):
                print(f"{name}: no checkpoint: {made.sentence}", flush=True)
                continue
            for engine in engines:
                toolchain = toolchains()[runtimes()[engine].format]
                proven = toolchain.proven(resolve(str(Path(work) / "model")))
                found = apart(compare, toolchain.format, Path(work))
                if isinstance(found, Failure):
                    outcome: Computed | Refused = Refused(found.sentence.replace(f"{work}/", ""), proven)
                else:
                    outcome = Computed(proven=proven, **found)
                print(f"{name}, {engine}: {outcome}", flush=True)
                results.tools[engine] = toolchain.versions()
                results.families.setdefault(name, {})[engine] = outcome
                results.families = {known: results.families[known] for known in FAMILIES if known in results.families}
                write(results)


class Failure(msgspec.Struct, frozen=True):
    sentence: str


def apart(work: Any, *arguments: Any) -> Any:
    """What `work` gives or a Failure, from a process of its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=answer, args=(there, work, arguments))
    process.start()
    there.close()
    found: Any
    try:
        found = here.recv() if here.poll(PATIENCE_SECONDS) else Failure(f"did not end within {PATIENCE_SECONDS} s")
    except EOFError:
        process.join()
        found = Failure(f"its process died with status {process.exitcode}")
    if process.is_alive():
        process.kill()
    process.join()
    return found


def answer(there: Connection, work: Any, arguments: tuple[Any, ...]) -> None:
    try:
        there.send(work(*arguments))
    except CannotBuild as error:
        there.send(Failure(str(error)))
    except Exception as error:  # as a build says it
        first = next(iter(str(error).strip().splitlines()), "")
        there.send(Failure(f"{type(error).__name__}: {first[:MESSAGE_LETTERS]}"))


def make(name: str, folder: Path) -> None:
    """Makes the checkpoint, and beside it what transformers says of the text."""
    architecture, settings = FAMILIES[name]
    make_checkpoint(folder, architecture, tokenizer=tokenizer(), vocab_size=VOCABULARY, **settings)
    np.save(folder.with_name("expected.npy"), log_softmax(next(Transformers(folder).logits([ids()]))))


def compare(format: str, work: Path) -> dict[str, Any]:
    """The figures of Computed."""
    toolchain, source = toolchains()[format], resolve(str(work / "model"))
    if reason := toolchain.unavailable() or toolchain.refuses(source):
        raise CannotBuild(reason)
    folder = work / format
    folder.mkdir()
    build(toolchain, source, toolchain.precisions["f32"], folder)
    expected = np.load(work / "expected.npy")
    got = log_softmax(next(toolchain.logits(folder / toolchain.entry, [ids()]))[:, : expected.shape[1]])
    if not np.isfinite(got).all():
        raise CannotBuild("does not compute numbers")
    differences = np.abs(got - expected).max(1)
    figures = {
        "largest": differences.max(),
        "median": np.median(differences),
        "divergence": max(0.0, (np.exp(expected) * (expected - got)).sum(1).mean()),  # rounding may go below
    }
    rounded: dict[str, Any] = {name: float(f"{figure:.2g}") for name, figure in figures.items()}
    rounded["outliers"] = int((differences >= LARGE).sum())
    return rounded | ({"converter": converter(work / "model")} if format == "gguf" else {})


def build(toolchain: Toolchain, source: Source, precision: str, folder: Path) -> None:
    def quiet(stage: str, fraction: float) -> None: ...

    if export := toolchain.export:
        exported = folder.with_name("exported")
        exported.mkdir()
        export.make(source, export.precision(source, precision), exported, quiet)
        source = resolve(str(exported))
    toolchain.build(source, precision, folder, quiet)


def converter(folder: Path) -> str:
    from enginehouse.optimize.toolchains.gguf.checkpoint import decide
    from enginehouse.optimize.toolchains.gguf.upstream import Upstream

    return "llama.cpp's" if isinstance(decide(folder), Upstream) else "ours"


def tokenizer() -> tokenizers.Tokenizer:
    made = byte_level_tokenizer()
    made.add_tokens([f"<extra {number}>" for number in range(VOCABULARY - made.get_vocab_size())])
    return made


def ids() -> list[int]:
    found: list[int] = tokenizer().encode("".join(CORPUS)).ids
    return found[:TOKENS]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="*", default=["llamacpp", "openvino", "onnx", "mlx"], dest="engines")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), dest="names")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
    else:
        main(arguments.names, arguments.engines)
