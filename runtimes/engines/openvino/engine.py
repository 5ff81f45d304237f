"""OpenVINO GenAI: its ContinuousBatchingPipeline does batching, sampling and constraints; token ids go in and out."""

import importlib.util
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from enginehouse.runtimes.contract import (
    HALF_THE_THREADS,
    Constraint,
    Device,
    Engine,
    Facts,
    Load,
    Local,
    Logprob,
    Pieces,
    Pooling,
    Priority,
    Regex,
    Sampling,
    Structured,
    Token,
    check_tokens,
)
from enginehouse.runtimes.decoding import kv_cache
from enginehouse.runtimes.decoding.constraints import Constraints
from enginehouse.runtimes.decoding.jobs import Jobs, Running
from enginehouse.runtimes.decoding.pooling import pooled
from enginehouse.runtimes.decoding.priorities import Riders
from enginehouse.runtimes.decoding.sampling import GREEDY_BELOW, Choice, scored
from enginehouse.runtimes.decoding.tokenizer import Vocabulary
from enginehouse.runtimes.engines.openvino.constraints import Structures
from enginehouse.runtimes.engines.openvino.graphs import MODEL, last_line, own_tokenizer, silence, without_head
from enginehouse.runtimes.engines.openvino.prefixes import Prefixes
from enginehouse.runtimes.errors import ConstraintFailed, Refused
from enginehouse.runtimes.grammar.matcher import Matcher

if TYPE_CHECKING:
    import numpy as np

ARITHMETIC = "arithmetic"  # a file that names what to compute in, where an artifact is meant for one precision
TOKENIZER = "tokenizer.json"
ALMOST = 1e-6  # GenAI wants top_p above 0 and min_p below 1; so near, they mean the same
EMBEDDING_ROWS = 256  # tokens of a text read at a time, between two steps
SCORED_ROWS = 64  # the same where each gives logits
# Not among them: presence_penalty and frequency_penalty, which GenAI adds to a negative logit instead of subtracting
# (logit_transformers.hpp, 2026.4); logit_bias and the alternatives of logprobs, which it has not.
FEATURES = (
    "max_tokens", "min_tokens", "ignore_eos", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty",
    "stop_token_ids", "logprobs", "json_schema", "regex", "tools", "embeddings", "prompt_logprobs",
)  # fmt: skip
PAUSE_SECONDS = 0.002  # between two looks whether an answer may begin
ATTEMPTS = 3  # of a job to go on when the KV cache was full
NO_NPU = "an NPU has no continuous batching in OpenVINO GenAI"
KV_BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "u8": 1.0, "u4": 0.5}
CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # as OpenVINO names them
BLOCK_TOKENS = {"CPU": 32, "GPU": 16}  # of a page of the KV cache


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`options: {openvino: {...}}` of a model."""

    device: str | None = None  # OpenVINO's own name, where a machine has several of a kind: GPU.1
    precision: Literal["auto", "f32", "bf16", "f16"] = "auto"  # of arithmetic; auto: bf16 where the CPU has it
    kv_precision: Literal["auto", "f32", "bf16", "f16", "u8", "u4"] = "auto"  # auto: 16 bits
    kv_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None  # KV cells shared by all slots
    prefill_chunk: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 256  # prompt tokens read in one step
    prefix_caching: bool = True


class State:
    """What is kept for a job beside its tokens."""

    def __init__(self, config: Any, matcher: Matcher | None) -> None:
        self.config = config
        self.matcher = matcher
        self.handle: Any = None
        self.attempts = 0  # how often the KV cache was too full to go on
        self.stepped = False  # whether the pipeline may have read a part of it


class OpenVino:
    def __init__(self, load: Load, report: Callable[[float], None]) -> None:
        silence()
        import openvino
        import openvino_genai

        self._ov, self._genai = openvino, openvino_genai
        options = msgspec.convert(load.options, Options)
        folder = Path(load.path)
        check_folder(folder)
        self._core = openvino.Core()
        self._device = options.device or load.device.upper()
        self._properties = self._properties_for(folder, options, load.threads)
        self._vocabulary = Vocabulary(folder)
        self._model_file = folder / MODEL
        model = self._read_model()
        each = token_bytes(model, self._properties)
        context = kv_cache.context_of(load, self._vocabulary.context_length, options.kv_tokens, each)
        tokens = kv_cache.cells(options.kv_tokens, context, load.slots)
        # OpenVINO compares the KV cache with the machine's whole memory, not with what is free.
        kv_cache.check_room("openvino", tokens, tokens * each, load.free_bytes)
        width = model.output("logits").get_partial_shape()[2].get_length()
        self._pieces = self._vocabulary.pieces_for(width)
        report(0.1)
        self._block = BLOCK_TOKENS[self._device.partition(".")[0]]
        blocks = math.ceil(tokens / self._block) + 1
        self._tokenizer = own_tokenizer(openvino, openvino_genai, self._vocabulary, width)
        self._pipeline = self._new_pipeline(folder, options, load, blocks)
        self._prefixes = Prefixes(self._block, blocks if options.prefix_caching else 0)
        self._running: list[Running[State]] = []
        self._leaving: list[Running[State]] = []  # removed while their prompt is read: see remove()
        self._requests = 0
        self._riders = Riders({})
        self._hidden: Any = None  # an infer request for embeddings, made when the first text comes
        self._whole: Any = None  # the same for scores: GenAI's own `echo` is wrong where a prefix is in its cache
        self.facts = Facts(
            context_length=context,
            slots=load.slots,
            vocabulary=width,
            chat_template=self._vocabulary.chat_template,
            bos=self._vocabulary.bos,
            eos=self._vocabulary.eos,
            device=self._device.partition(".")[0].lower(),
            features=FEATURES,
            longest_token=self._vocabulary.longest_token,
            special_tokens=self._vocabulary.special_texts,
            token_bytes=int(each),
            kv_bytes=int(tokens * each),
            kv_tokens=tokens,
        )
        self._jobs = Jobs(self.facts, self.text, lambda: self._vocabulary.grammar_compiler(width), self._state)
        self._compiling = Structures(openvino, openvino_genai, self._tokenizer, folder, width)
        self._structures = Constraints(self._compiling.make)

    # --- the contract ---

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def make_ready(self, constraint: Constraint) -> Pieces[None]:
        began = all(one.generated for one in self._jobs.all.values() if one.sampling.constraint)
        if self._compiling.full and self._structures.idle and began:
            self._structures.forget()
            self._compiling.forget()
        yield from self._structures.make_ready(constraint)
        if isinstance(constraint, Regex):  # see _state
            yield from self._jobs.make_ready(constraint)

    def add(self, job: int, ids: Sequence[int], sampling: Sampling, priority: Priority = "interactive") -> None:
        # A constraint that is met can only be followed by the end.
        ends = () if sampling.ignore_eos and not sampling.constraint else self._vocabulary.ends
        self._jobs.add(job, ids, sampling, ends, priority)

    def step(self) -> list[Token]:
        self._admit()
        if not self._pipeline.has_non_finished_requests():
            if self._jobs.waiting:  # for a constraint to be compiled
                time.sleep(PAUSE_SECONDS)
            return []
        answering = len(self._running) if all(running.generated for running in self._running) else 0
        began = time.perf_counter()
        self._pipeline.step()
        if answering and not self._leaving:
            self._riders.note(answering, time.perf_counter() - began)
        for running in self._running:
            running.state.stepped = True
        out = [token for running in list(self._running) for token in self._read(running)]
        for leaving in list(self._leaving):
            handle = leaving.state.handle
            if handle.can_read() or handle.get_status() != self._genai.GenerationStatus.RUNNING:
                handle.cancel()
                self._leaving.remove(leaving)
        self._let_compile()
        return out

    def read(self, job: int) -> tuple[int, int] | None:
        return None  # GenAI tells nobody

    def text(self, token: int) -> bytes:
        return self._pieces[token]

    def remove(self, job: int) -> None:
        """A prompt of which a part is read is read to its end in silence: GenAI marks a half-filled page of the KV
        cache as holding the whole text when it is begun, and would give it to the next prompt that starts alike."""
        running = self._jobs.all.get(job)
        if running is None:
            return
        self._jobs.end(running)
        if running.state.handle is None:
            return
        self._running.remove(running)
        self._let_compile()
        if running.state.stepped and not running.generated and self._prefixes.capacity:
            self._leaving.append(running)
        else:
            running.state.handle.cancel()
            if running.generated:
                self._prefixes.keep(running.tokens[:-1])

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        import numpy as np

        check_tokens(ids, Sampling(), self.facts.vocabulary)
        if self._hidden is None:
            self._hidden = self._request(without_head(self._ov, self._read_model()))
        hidden = []
        for _, rows in self._outputs(self._hidden, ids, EMBEDDING_ROWS):
            hidden.append(rows)
            yield
        return pooled(np.concatenate(hidden), pooling)

    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]:
        if self._whole is None:
            self._whole = self._request(self._read_model())
        out = list[Logprob]()
        for start, rows in self._outputs(self._whole, ids[:-1], SCORED_ROWS):
            out += scored(rows, ids[start + 1 :][: len(rows)], top, self.text)
            yield
        return out

    def rest(self) -> bool:
        return False

    def close(self) -> None:
        for job in list(self._jobs.all):
            self.remove(job)
        self._leaving.clear()
        self._jobs.close()
        self._structures.close()
        self._compiling.close()
        self._pipeline = self._hidden = self._whole = self._tokenizer = None

    # --- one step ---

    def _admit(self) -> None:
        for batch in self._riders.in_the_way(self._running, self._jobs):
            self._make_way(batch)
        while self._jobs.waiting and len(self._running) < self.facts.slots:
            running = next((running for running in self._jobs.waiting if self._may_begin(running)), None)
            if running is None:
                return
            self._jobs.waiting.remove(running)
            state, cached = running.state, self._prefixes.reuse(running.tokens)
            running.note_slot(cached, "memory")
            state.handle = self._pipeline.add_request(self._requests, self._tensor(running.tokens), state.config)
            self._requests += 1
            self._running.append(running)

    def _may_begin(self, running: Running[State]) -> bool:
        if not self._riders.may_begin(running, self._running, self._jobs):
            return False
        return not running.sampling.constraint or self._compiling.turns.begin_answer()

    def _make_way(self, running: Running[State]) -> None:
        """Sends a batch job back to wait, unless GenAI could not go on as if nothing had been: where a constraint or a
        seed's numbers had come to, or in the middle of a prompt (see remove)."""
        s, state = running.sampling, running.state
        drawn = s.seed is not None and s.temperature >= GREEDY_BELOW
        if (state.stepped and not running.generated) or (running.generated and (s.constraint or drawn)):
            return
        state.handle.cancel()
        if running.generated:
            self._prefixes.keep(running.tokens[:-1])
        self._forget_handle(running)
        self._jobs.wait(running)

    def _let_compile(self) -> None:
        if not any(running.sampling.constraint and not running.generated for running in self._running):
            self._compiling.turns.all_began()

    def _read(self, running: Running[State]) -> Iterator[Token]:
        handle = running.state.handle
        while handle.can_read():
            for output in handle.read().values():
                for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    yield self._next(running, int(token), float(logprob))
        if handle.get_status() == self._genai.GenerationStatus.IGNORED and running in self._running:
            yield from self._send_back(running)

    def _next(self, running: Running[State], id: int, logprob: float) -> Token:
        if not running.generated:
            self._prefixes.keep(running.tokens[: running.prompt // self._block * self._block])
        matcher = running.state.matcher
        try:
            complete = matcher is not None and matcher.accept(id)
        except ConstraintFailed as error:
            token = running.failed(str(error))
        else:
            asked = running.sampling.logprobs is not None
            token = self._jobs.token(running, Choice(id, logprob if asked else None), complete)
        if token.finish or token.failure:
            self._jobs.end(running)
            self._jobs.hold = False
            self._running.remove(running)
            self._prefixes.keep(running.tokens[:-1] if token.id >= 0 else running.tokens)
            if token.id >= 0 or token.failure:  # else the pipeline has ended it itself
                running.state.handle.cancel()
        return token

    def _send_back(self, running: Running[State]) -> Iterator[Token]:
        """GenAI gave it up because no page of the KV cache was free; it goes on when there is more room."""
        running.state.attempts += 1
        if running.state.attempts > ATTEMPTS or (running.sampling.constraint and running.generated):
            self._jobs.end(running)
            self._running.remove(running)
            yield running.failed("the KV cache is full; raise options.openvino.kv_tokens, or lower 'slots'")
            return
        self._forget_handle(running)
        self._jobs.send_back(running)

    def _forget_handle(self, running: Running[State]) -> None:
        self._running.remove(running)
        running.state.handle, running.state.stepped = None, False
        running.state.config = self._generation_config(running)

    def _tensor(self, ids: Sequence[int]) -> Any:
        import numpy as np

        return self._ov.Tensor(np.array([ids], np.int64))

    # --- sampling ---

    def _state(self, running: Running[State]) -> State:
        config, sampling = self._generation_config(running), running.sampling
        # With min_tokens GenAI goes on where the constraint leaves nothing to say, and takes a token that it forbids.
        watched = sampling.constraint if sampling.min_tokens else None
        return State(config, self._jobs.matcher(watched) if watched else None)

    def _generation_config(self, running: Running[State]) -> Any:
        """Of what is left of a job to do."""
        sampling, ends = running.sampling, running.ends
        room = self.facts.context_length - running.prompt
        allowed = min(sampling.max_tokens or room, room) - running.generated
        config = self._genai.GenerationConfig()
        config.max_new_tokens = allowed
        config.ignore_eos = not ends  # it ignores stop_token_ids too
        # An end of one's own must always be named: GenAI adds the model's to stop_token_ids where there is none.
        config.stop_token_ids = set(ends) or {0}
        config.eos_token_id = min(ends, default=0)
        config.min_new_tokens = min(max(sampling.min_tokens - running.generated, 0), allowed) if ends else 0
        config.repetition_penalty = sampling.repetition_penalty
        config.logprobs = 0 if sampling.logprobs is None else 1
        if sampling.temperature < GREEDY_BELOW:
            config.do_sample = False
        else:
            config.do_sample = True
            config.temperature = sampling.temperature
            config.top_p = max(sampling.top_p, ALMOST)
            config.min_p = min(sampling.min_p, 1 - ALMOST)
            config.top_k = min(sampling.top_k or self.facts.vocabulary, self.facts.vocabulary)
            config.rng_seed = random.getrandbits(32) if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        if sampling.constraint:
            if sampling.min_tokens and not isinstance(sampling.constraint, Regex):
                combined = "tools" if isinstance(sampling.constraint, Structured) else "a schema"
                raise Refused(f"'min_tokens' cannot be combined with {combined} on this model's engine", "min_tokens")
            config.structured_output_config = self._structures.of(sampling.constraint)
        try:
            config.validate()
        except RuntimeError as error:
            raise Refused(last_line(error)) from error
        return config

    # --- embeddings and scores ---

    def _request(self, model: Any) -> Any:
        properties = {k: v for k, v in self._properties.items() if k != "KV_CACHE_PRECISION"}
        return self._core.compile_model(model, self._device, properties).create_infer_request()

    def _outputs(self, request: Any, ids: Sequence[int], rows: int) -> "Iterator[tuple[int, np.ndarray[Any, Any]]]":
        """Reads a text, so many tokens at a time: where each part begins, and what came out for its tokens: float32,
        (tokens, width)."""
        import numpy as np

        request.reset_state()
        known = {name for port in request.model_inputs for name in port.get_names()}
        for start in range(0, len(ids), rows):
            chunk = np.array([ids[start : start + rows]], np.int64)
            end = start + chunk.shape[1]
            inputs = {
                "input_ids": chunk,
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(start, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
            given = {name: value for name, value in inputs.items() if name in known}
            yield start, request.infer(given)[0][0].astype(np.float32)

    # --- loading ---

    def _properties_for(self, folder: Path, options: Options, threads: int) -> dict[str, Any]:
        """Both precisions are always given: an IR names its own, and loading fails where the two disagree."""
        kind = self._device.partition(".")[0]
        if kind == "NPU":
            raise ValueError(f"{NO_NPU}; use device CPU or GPU")
        have = self._core.available_devices  # "GPU", or "GPU.0" and "GPU.1", of which "GPU" is the first
        if self._device not in {*have, *(device.partition(".")[0] for device in have)} or kind not in BLOCK_TOKENS:
            raise ValueError(f"OpenVINO finds no device '{self._device}'; have: {', '.join(have)}")
        capable = self._core.get_property(self._device, "OPTIMIZATION_CAPABILITIES")
        best = "bf16" if "BF16" in capable and kind == "CPU" else "f16" if kind == "GPU" else "f32"
        file = folder / ARITHMETIC
        wanted = file.read_text() if file.exists() else best
        precision = wanted if options.precision == "auto" else options.precision
        if CAPABILITIES[precision] not in capable:
            raise ValueError(f"device '{self._device}' does not compute in {precision}; use precision {best} or f32")
        own = "f32" if precision == "f32" and file.exists() else "bf16" if precision == "bf16" else "f16"
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "KV_CACHE_PRECISION": own if options.kv_precision == "auto" else options.kv_precision,
        }
        if kind == "CPU":
            # Pinned, the threads of two models would sit on the same cores.
            properties |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        return properties

    def _read_model(self) -> Any:
        try:
            model = self._core.read_model(self._model_file)
            model.output("logits")
        except RuntimeError as error:
            raise ValueError(f"'{self._model_file}' is no language model's IR: {last_line(error)}") from error
        return model

    def _new_pipeline(self, folder: Path, options: Options, load: Load, blocks: int) -> Any:
        scheduler = self._genai.SchedulerConfig()
        scheduler.num_kv_blocks = blocks
        scheduler.max_num_batched_tokens = options.prefill_chunk + load.slots
        scheduler.max_num_seqs = load.slots
        scheduler.enable_prefix_caching = options.prefix_caching
        properties = self._properties | {"sampler_num_threads": load.threads}
        try:
            return self._genai.ContinuousBatchingPipeline(
                str(folder), self._tokenizer, scheduler, self._device, **properties
            )
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot load '{folder}': {last_line(error)}") from error


def check_folder(folder: Path) -> None:
    for name, remedy in (
        (MODEL, "give the folder of an OpenVINO IR"),
        (TOKENIZER, "copy it from the model's Hugging Face checkpoint"),
    ):
        if not (folder / name).exists():
            raise ValueError(f"'{folder}' has no {name}; {remedy}")


def token_bytes(model: Any, properties: dict[str, Any]) -> float:
    """Of the KV cache."""
    values = 0  # of one token
    for variable in model.get_variables():
        shape = variable.get_info().data_shape
        values += math.prod(size.get_length() for size in islice(shape, 1, None) if size.is_static)
    return float(values * KV_BYTES[properties["KV_CACHE_PRECISION"]])


def unavailable() -> str | None:
    for module, distribution in (
        ("openvino_genai", "openvino-genai"),
        ("openvino_tokenizers", "openvino-tokenizers"),
        ("tokenizers", "tokenizers"),
        ("llguidance", "llguidance"),
        ("numpy", "numpy"),
    ):
        if importlib.util.find_spec(module) is None:
            return f"{distribution} is not installed; pip install 'enginehouse[openvino]'"
    return None


def devices() -> list[Device]:
    """As OpenVINO lists them. Only CPUs were tried; the rest is written from its documentation."""
    silence()
    import openvino

    core = openvino.Core()
    found = []
    for name in core.available_devices:
        kind = name.partition(".")[0].lower()
        if kind in ("cpu", "gpu", "npu"):
            described = str(core.get_property(name, "FULL_DEVICE_NAME"))
            found.append(Device(name, kind, described, NO_NPU if kind == "npu" else None))
    return found


def load(load: Load, report: Callable[[float], None]) -> Engine:
    return OpenVino(load, report)


RUNTIME = Local(
    name="openvino",
    format="openvino",
    unavailable=unavailable,
    load=load,
    options=Options,
    features=FEATURES,
    devices=devices,
    distributions=("openvino", "openvino-genai"),
    settings=(HALF_THE_THREADS,),
)
