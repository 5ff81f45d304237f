"""llama.cpp beyond the contract: caches that forget, of sliding windows and recurrent states, whose KV is reused."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains.gguf.toolchain import TOOLCHAIN
from enginehouse.runtimes.contract import Engine, Load, Sampling, Token
from enginehouse.runtimes.decoding import batching
from enginehouse.runtimes.engines.llamacpp import kv_layout
from enginehouse.runtimes.engines.llamacpp.engine import RUNTIME, load
from tests.checkpoints import make_checkpoint, sentencepiece_tokenizer

gguf = pytest.importorskip("gguf")
if reason := RUNTIME.unavailable():
    pytest.skip(reason, allow_module_level=True)

CONTEXT, WIDTH, MLP, KV_HEADS = 256, 64, 96, (0, 2, 0, 2)
INNER, STATE, RANK, KERNEL = 2 * WIDTH, 8, 4, 4


def build(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    TOOLCHAIN.build(resolve(str(checkpoint)), "F32", folder, lambda stage, fraction: None)
    return folder / TOOLCHAIN.entry


class Writer:
    """A GGUF of random weights, with the tokenizer of another."""

    def __init__(self, file: Path, architecture: str, layers: int, tokenizer: Path) -> None:
        self.own = gguf.GGUFWriter(str(file), architecture)
        self._random = np.random.default_rng(0)
        fields = gguf.GGUFReader(str(tokenizer)).fields
        for name, field in fields.items():
            if name.startswith("tokenizer."):
                self.own.add_key_value(name, field.contents(), field.types[0], *field.types[1:2])
        self.vocabulary = len(fields["tokenizer.ggml.tokens"].data)
        self.own.add_vocab_size(self.vocabulary)
        self.own.add_context_length(CONTEXT)
        self.own.add_embedding_length(WIDTH)
        self.own.add_block_count(layers)
        self.own.add_layer_norm_rms_eps(1e-5)
        self.tensors("", **{"token_embd.weight": (self.vocabulary, WIDTH)})

    def tensors(self, prefix: str, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            values = self._random.normal(1.0 if "norm" in name else 0.0, 0.3, shape)
            values = -0.1 * np.abs(values) if name == "ssm_a" else values
            self.own.add_tensor(prefix + name, values.astype(np.float32))

    def close(self) -> None:
        self.own.write_header_to_file()
        self.own.write_kv_data_to_file()
        self.own.write_tensors_to_file()
        self.own.close()


def mamba(file: Path, tokenizer: Path) -> Path:
    writer = Writer(file, "mamba", 2, tokenizer)
    writer.own.add_head_count(0)
    writer.own.add_feed_forward_length(0)
    writer.own.add_ssm_conv_kernel(KERNEL)
    writer.own.add_ssm_inner_size(INNER)
    writer.own.add_ssm_state_size(STATE)
    writer.own.add_ssm_time_step_rank(RANK)
    writer.tensors("", **{"output_norm.weight": (WIDTH,)})
    layer = {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (2 * INNER, WIDTH),
        "ssm_conv1d.weight": (INNER, KERNEL),
        "ssm_conv1d.bias": (INNER,),
        "ssm_x.weight": (RANK + 2 * STATE, INNER),
        "ssm_dt.weight": (INNER, RANK),
        "ssm_dt.bias": (INNER,),
        "ssm_a": (INNER, STATE),
        "ssm_d": (INNER,),
        "ssm_out.weight": (WIDTH, INNER),
    }
    for number in range(2):
        writer.tensors(f"blk.{number}.", **layer)
    writer.close()
    return file


def lfm2(file: Path, tokenizer: Path) -> Path:
    """A hybrid: convolutions with a state, and attention."""
    writer = Writer(file, "lfm2", len(KV_HEADS), tokenizer)
    writer.own.add_head_count(4)
    writer.own.add_head_count_kv(KV_HEADS)
    writer.own.add_feed_forward_length(MLP)
    writer.own.add_shortconv_l_cache(3)
    writer.own.add_rope_freq_base(10000.0)
    writer.tensors("", **{"token_embd_norm.weight": (WIDTH,)})
    both = {
        "attn_norm.weight": (WIDTH,),
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate.weight": (MLP, WIDTH),
        "ffn_up.weight": (MLP, WIDTH),
        "ffn_down.weight": (WIDTH, MLP),
    }
    attention = {
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (WIDTH // 2, WIDTH),
        "attn_v.weight": (WIDTH // 2, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
        "attn_q_norm.weight": (WIDTH // 4,),
        "attn_k_norm.weight": (WIDTH // 4,),
    }
    convolution = {
        "shortconv.conv.weight": (WIDTH, 3),
        "shortconv.in_proj.weight": (3 * WIDTH, WIDTH),
        "shortconv.out_proj.weight": (WIDTH, WIDTH),
    }
    for number, heads in enumerate(KV_HEADS):
        writer.tensors(f"blk.{number}.", **both, **(attention if heads else convolution))
    writer.close()
    return file


@pytest.fixture(scope="module", params=["gemma3", "mamba", "lfm2"])
def start(request: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "gemma3":  # a window of 16 tokens
        source = make_checkpoint(folder / "source", "Gemma3ForCausalLM", tokenizer=sentencepiece_tokenizer("never"))
        file = build(source, folder / "artifact")
    else:
        maker = {"mamba": mamba, "lfm2": lfm2}[request.param]
        file = maker(folder / "model.gguf", build(checkpoint, folder / "artifact"))
    exact = {"kv_precision": "f32", "flash_attention": "off", "prefill_chunk": 32, "kv_tokens": 512}

    def load_with(slots: int, kv: str = "", **more: Any) -> Engine:
        given = Load("llamacpp", str(file), CONTEXT, slots, 1, 0, exact | more, kv_folder=kv, kv_bytes=1 << 30)
        return load(given, lambda fraction: None)

    return load_with


def run(engine: Engine, jobs: list[tuple[list[int], int]]) -> list[list[Token]]:
    """Prompts and how many tokens each is answered with."""
    out: list[list[Token]] = [[] for _ in jobs]
    for job, (ids, count) in enumerate(jobs):
        engine.add(job, ids, Sampling(max_tokens=count, temperature=0, ignore_eos=True))
    running = len(jobs)
    while running:
        for token in engine.step():
            out[token.job].append(token)
            running -= bool(token.finish or token.failure)
    return out


def save(engine: Engine) -> None:
    """As a worker does when nobody asks."""
    assert isinstance(engine, batching.BatchedEngine)
    while engine.rest():
        assert engine._saving
        engine._saving.join()


def generated(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]


def test_what_is_reused_of_other_prompts_changes_no_answer(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conversations that go on, part and begin anew, up to three at once, in a cache that they fill."""
    monkeypatch.setattr(batching, "KEEP_EVERY", 32)
    chance, engine = random.Random(1), start(3)
    texts = [[chance.randrange(3, 250) for _ in range(150)] for _ in range(3)]
    conversations, cached = list(texts), 0
    for _ in range(12):
        jobs = []
        for _ in range(chance.randint(1, 3)):
            begin = chance.choice(texts + conversations[-6:])
            begin = begin if chance.random() < 0.5 else begin[: chance.randint(1, len(begin))]
            own = [chance.randrange(3, 250) for _ in range(chance.randint(1, 20))]
            jobs.append((begin[:200] + own, chance.randint(1, 30)))
        for job, tokens in zip(jobs, run(engine, jobs), strict=True):
            alone = start(1)
            assert generated(tokens) == generated(run(alone, [job])[0])
            alone.close()
            conversations.append(job[0] + generated(tokens))
            cached += tokens[0].cached
    engine.close()
    assert cached > 100


def test_a_cache_that_grows_under_running_jobs_changes_no_answer_and_forgets_nothing(
    start: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, jobs = random.Random(2), []
    for length in (100, 60, 140):
        jobs.append(([chance.randrange(3, 250) for _ in range(length)], 40))
    alone = start(1)
    expected = [generated(run(alone, [job])[0]) for job in jobs]
    alone.close()
    monkeypatch.setattr(kv_layout, "FIRST_CELLS", 64)
    grown = start(3, kv_tokens=None)
    assert [generated(tokens) for tokens in run(grown, jobs)] == expected
    longer = [*jobs[2][0], *expected[2], 9, 8, 7]
    assert run(grown, [(longer, 4)])[0][0].cached == len(jobs[2][0]) + len(expected[2]) - 1
    grown.close()


def test_a_chat_whose_thoughts_are_left_out_later_is_read_on_from_there(start: Callable[..., Engine]) -> None:
    chance, engine = random.Random(3), start(2)
    prompt, after = ([chance.randrange(3, 250) for _ in range(length)] for length in (150, 40))
    run(engine, [(prompt, 30)])
    (again,) = run(engine, [([*prompt, *after], 12)])
    engine.close()
    alone = start(1)
    assert generated(again) == generated(run(alone, [([*prompt, *after], 12)])[0])
    alone.close()
    assert len(prompt) - batching.KEEP_BEFORE_END <= again[0].cached <= len(prompt)


def test_a_chat_goes_on_where_it_was_after_its_worker_is_gone(
    start: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WORTH_SAVING", 32)
    chance, kv = random.Random(4), str(tmp_path / "kv" / "model")
    prompt, after = ([chance.randrange(3, 250) for _ in range(length)] for length in (150, 40))
    engine = start(2, kv)
    run(engine, [(prompt, 30)])
    save(engine)
    engine.close()
    alone, other, small = start(1), start(2, kv), start(2, kv, kv_tokens=None)
    expected = generated(run(alone, [([*prompt, *after], 12)])[0])
    for again in (other, small):
        (said,) = run(again, [([*prompt, *after], 12)])
        assert generated(said) == expected
        assert said[0].cached >= len(prompt) - batching.KEEP_BEFORE_END
    for one in (alone, other, small):
        one.close()


def test_a_conversation_that_goes_on_is_not_read_again(start: Callable[..., Engine]) -> None:
    engine, prompt = start(2), list(range(40, 100))
    said = generated(run(engine, [(prompt, 12)])[0])
    (again,) = run(engine, [([*prompt, *said, 9, 8, 7], 4)])
    engine.close()
    assert again[0].cached == len(prompt) + len(said) - 1  # the last token was never read
