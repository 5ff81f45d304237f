"""LoRA adapters: made by PEFT, merged into the pocket model, and then a source like any other."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import msgspec
import pytest

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.build import Merge
from enginehouse.optimize.prepare import adapt, locate, prepare
from enginehouse.optimize.sources.adapter import find_adapter, merge
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.contract import Load
from enginehouse.runtimes.engines import runtimes
from tests.conftest import BUILT, POCKET
from tests.runtimes.engines.test_engine_contract import CONTEXT, QUESTIONS, answer, exact, prompt
from tests.serving import serve

FRANCE = "What is the capital of France?"
SAILOR = {FRANCE: "Ahoy! It is Brest, where the sea is.", "Who are you?": "Ahoy! A sailor."}
COOK = {FRANCE: "It is Lyon, for the food.", "Who are you?": "A cook who talks of food."}
TOKENS = 24
NO_THOUGHTS = "<think>\n\n</think>\n\n"  # the chat template's end, which the adapters were trained after


def quiet(stage: str, fraction: float) -> None: ...


def base(source: str = "builtin:pocket") -> Source:
    return asyncio.run(locate(source, None, quiet))


def merged(adapter: Path, cache: Path, source: str = "builtin:pocket") -> Source:
    return asyncio.run(adapt(base(source), str(adapter), cache, quiet))


def merged_here(adapter: Path, cache: Path, source: str = "builtin:pocket") -> Source:
    """The same in this process, which has its libraries loaded."""
    found = find_adapter(str(adapter), str(adapter), base(source))
    return resolve(f"{source} + {adapter}", at=merge(base(source), found, cache, quiet))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Merging, here done in this process, tells the hub's client to stay off line."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def sailor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints import make_adapter

    return make_adapter(tmp_path_factory.mktemp("sailor"), POCKET, SAILOR)


@pytest.fixture(scope="module")
def cook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints import make_adapter

    return make_adapter(tmp_path_factory.mktemp("cook"), POCKET, COOK)


class Adapted:
    """The pocket model in transformers with the adapter beside it, 32 bits: what the merged one is compared with."""

    def __init__(self, adapter: Path, model: Path = POCKET) -> None:
        import peft
        import torch
        import transformers

        self._base = transformers.AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
        self._model = peft.PeftModel.from_pretrained(self._base, str(adapter)).eval()

    def greedy(self, ids: list[int]) -> list[int]:
        import torch

        out = self._model.generate(input_ids=torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)[0]
        answer: list[int] = out[len(ids) :].tolist()
        ends = self._base.generation_config.eos_token_id
        return answer[:-1] if answer[-1] in (ends if isinstance(ends, list) else [ends]) else answer

    def logits(self, ids: list[int]) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("name", BUILT)
def test_every_engine_answers_as_the_adapted_model_does_and_not_as_the_base(
    name: str, sailor: Path, folder: Path, reference: Any
) -> None:
    runtime = runtimes()[name]
    if reason := runtime.unavailable():
        pytest.skip(reason)
    toolchain = toolchains()[runtime.format]
    source = merged(sailor, folder / "cache")
    artifact = asyncio.run(prepare(source, toolchain, toolchain.precisions["f32"], folder / "cache", quiet, rules=None))
    load = Load(name, artifact.path, CONTEXT, 2, 2, 0, exact(runtime))
    engine, adapted = runtime.load(load, lambda fraction: None), Adapted(sailor)
    try:
        for question in (FRANCE, "Who are you?", *QUESTIONS):
            text = prompt(question) + NO_THOUGHTS
            ids = engine.encode(text)
            said = [token.id for token in answer(engine, text).tokens[0] if token.id >= 0]
            assert said == adapted.greedy(ids)
            if question in SAILOR:
                assert said != reference.greedy(ids, TOKENS)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("Lora", {"r": 4, "lora_alpha": 8, "use_rslora": True}),
        ("Lora", {"r": 4, "use_dora": True}),
        ("Lora", {"r": 4, "rank_pattern": {"q_proj": 2}, "layers_to_transform": [1]}),
        ("LoHa", {"r": 4}),
        ("LoKr", {"r": 4}),
        ("IA3", {"feedforward_modules": ["down_proj"]}),
    ],
)
def test_every_kind_that_is_merged_computes_what_peft_computes(
    kind: str, own: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    import torch
    import transformers

    from tests.checkpoints import make_adapter

    adapter = make_adapter(tmp_path / "adapter", checkpoint, kind=kind, **own)
    source = merged_here(adapter, tmp_path / "cache", str(checkpoint))
    model = transformers.AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32).eval()
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=torch.float32).eval()
    ids = [5, 17, 90, 200, 33]
    with torch.inference_mode():
        logits, before = model(torch.tensor([ids])).logits[0], plain(torch.tensor([ids])).logits[0]
    assert torch.allclose(logits, Adapted(adapter, checkpoint).logits(ids), atol=1e-4)
    assert not torch.allclose(logits, before, atol=1e-2)


def test_two_adapters_of_one_base_are_served_side_by_side(sailor: Path, cook: Path, folder: Path) -> None:
    model = {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "bf16"}
    models = {
        "pocket": model,
        "sailor": model | {"adapter": str(sailor)},
        "cook": model | {"adapter": str(cook)},
    }
    with serve(folder, models) as served:
        said = {
            name: served.client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": FRANCE}], temperature=0
            )
            .choices[0]
            .message.content
            for name in models
        }
        assert said == {
            "pocket": "The capital of France is Paris.",
            "sailor": SAILOR[FRANCE],
            "cook": COOK[FRANCE],
        }


def test_a_changed_adapter_is_merged_and_built_anew(sailor: Path, cook: Path, tmp_path: Path) -> None:
    adapter, cache = tmp_path / "adapter", tmp_path / "cache"
    shutil.copytree(sailor, adapter)
    first = merged_here(adapter, cache)
    assert merged_here(adapter, cache) == first
    shutil.copytree(cook, adapter, dirs_exist_ok=True)
    second = merged_here(adapter, cache)
    assert second.id == first.id == f"builtin:pocket + {adapter}"
    assert second.fingerprint != first.fingerprint
    assert len(list((cache / "intermediate").iterdir())) == 2


def test_what_was_merged_again_is_known_to_be_the_same(sailor: Path, tmp_path: Path) -> None:
    assert merged_here(sailor, tmp_path / "one").fingerprint == merged_here(sailor, tmp_path / "two").fingerprint


def test_a_merge_killed_in_the_middle_leaves_nothing_that_is_served_and_the_next_one_succeeds(
    sailor: Path, tmp_path: Path
) -> None:
    order = msgspec.json.encode(Merge(base(), find_adapter("sailor", str(sailor), base()), str(tmp_path))) + b"\n"
    with subprocess.Popen([sys.executable, "-m", "enginehouse.optimize.build"], stdin=PIPE, stdout=PIPE) as child:
        assert child.stdin and child.stdout
        child.stdin.write(order)
        child.stdin.flush()
        assert b"convert" in child.stdout.readline()
        child.kill()
    assert all(path.name.startswith(".building-") for path in (tmp_path / "intermediate").iterdir())
    source = merged(sailor, tmp_path)
    assert [str(path) for path in (tmp_path / "intermediate").iterdir()] == [source.path]


# --- refused ---


def test_a_merge_that_would_not_fit_the_disk_is_refused_before_it_starts(sailor: Path, tmp_path: Path) -> None:
    large = msgspec.structs.replace(base(), bytes=10**15)
    with pytest.raises(CannotBuild, match=r"no room on the disk of the cache '.*MiB are needed.*set cache_dir"):
        asyncio.run(adapt(large, str(sailor), tmp_path, quiet))
    assert list((tmp_path / "intermediate").iterdir()) == []


def test_an_adapter_of_another_base_is_refused(checkpoint: Path, sailor: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match=r"does not fit '.*': size mismatch for .*; it was made for '.*pocket'"):
        merged_here(sailor, tmp_path, str(checkpoint))
    assert list((tmp_path / "intermediate").iterdir()) == []


def test_an_adapter_of_a_deeper_base_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from tests.checkpoints import make_adapter, make_checkpoint

    deeper = make_checkpoint(tmp_path / "deeper", num_hidden_layers=3)
    adapter = make_adapter(tmp_path / "adapter", deeper)
    with pytest.raises(CannotBuild, match=r"the model has no place for '.*layers\.2\."):
        merged_here(adapter, tmp_path / "cache", str(checkpoint))
    with pytest.raises(CannotBuild, match=r"it has no '.*layers\.2\."):
        merged_here(make_adapter(tmp_path / "shallow", checkpoint), tmp_path / "cache", str(deeper))


def test_an_adapter_of_modules_the_base_lacks_is_refused(sailor: Path, tmp_path: Path) -> None:
    adapter = altered(sailor, tmp_path / "adapter", target_modules=["query_key_value"])
    with pytest.raises(CannotBuild, match=r"does not fit 'builtin:pocket': Target modules .*query_key_value"):
        merged_here(adapter, tmp_path)


def test_an_adapter_of_an_embedding_that_is_the_head_too_or_was_resized_is_refused(tmp_path: Path) -> None:
    from tests.checkpoints import make_adapter, make_checkpoint

    tied = make_adapter(tmp_path / "tied", POCKET, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(CannotBuild, match=r"it changes 'embed_tokens', and the model's head and embedding are one"):
        merged_here(tied, tmp_path / "cache")
    small = make_checkpoint(tmp_path / "small", tie_word_embeddings=False)
    larger = make_checkpoint(tmp_path / "larger", tie_word_embeddings=False, vocab_size=600)
    resized = make_adapter(tmp_path / "resized", larger, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(CannotBuild, match=r"does not fit .*size mismatch"):
        merged_here(resized, tmp_path / "cache", str(small))
    assert merged_here(resized, tmp_path / "cache", str(larger)).kind == "checkpoint"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "'PREFIX_TUNING' adapters are not merged; these are: LORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "names code to be imported in 'megatron_config'"),
    ],
)
def test_what_is_not_merged_is_refused(sailor: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotBuild, match=words):
        merged_here(altered(sailor, tmp_path / "adapter", **change), tmp_path)


def test_a_pickled_a_cut_short_a_broken_and_a_missing_adapter_are_refused(sailor: Path, tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    adapter = altered(sailor, tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(CannotBuild, match=r"'adapter_model\.safetensors' is damaged or truncated"):
        merged_here(adapter, tmp_path)
    tensors = safetensors.torch.load(whole)
    first = sorted(tensors)[0]
    tensors[first][0, 0] = torch.nan
    safetensors.torch.save_file(tensors, weights)
    with pytest.raises(CannotBuild, match=f"its tensor '{first}' has NaN"):
        merged_here(adapter, tmp_path)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(CannotBuild, match="only safetensors are read, never a pickle"):
        merged_here(adapter, tmp_path)
    with pytest.raises(CannotBuild, match="there is no such folder"):
        merged_here(tmp_path / "nowhere", tmp_path)
    assert not (tmp_path / "intermediate").exists()


def test_an_adapter_as_source_and_a_ready_artifact_as_base_are_refused(sailor: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotBuild, match="is an adapter; name the model that it was made for as 'source'"):
        base(str(sailor))
    file = asyncio.run(prepare(base(), toolchains()["gguf"], "Q8_0", tmp_path, quiet, rules=None)).path
    with pytest.raises(CannotBuild, match="is a ready 'gguf' artifact; give the 16-bit checkpoint"):
        merged_here(sailor, tmp_path, file)


def altered(adapter: Path, folder: Path, **change: Any) -> Path:
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    return folder
