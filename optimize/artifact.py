"""What is built from what, with which tool; and the contract of a toolchain file."""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np

# A folder artifact keeps these of its checkpoint: engines tokenize, render and end answers by them.
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
# Raise it with every change to the bytes of the checkpoints that .gguf files are made into.
DEQUANTIZED_VERSION = "2"
ELSEWHERE = "another runtime may serve it, see docs/families.md"  # what a tool says of a family that it does not take
# Called from a build: stage ("convert", "quantize", "check") and the fraction of that stage done, 0 to 1.
Report = Callable[[str, float], None]


class CannotBuild(Exception):
    """This source cannot become this artifact; the message is one sentence for the operator."""

    def __init__(self, message: str, environment: bool = False) -> None:
        super().__init__(message)
        self.environment = environment  # the fault of the disk or the network, not of source and recipe


class Source(msgspec.Struct, frozen=True):
    """Where a model's weights are on this machine, and what they are."""

    id: str  # as written in the config
    kind: str  # "checkpoint" (a Hugging Face folder) or the name of a ready-made artifact format ("gguf", "echo")
    path: str  # the folder, or the single file
    architecture: str  # "Qwen3ForCausalLM"; for a ready-made artifact what its header says, or ""
    context_length: int  # tokens; what the model was made for, 0 where the source does not say
    parameters: int  # weights counted from the headers, 0 where unknown
    bytes: int
    fingerprint: str  # changes when any file does
    precision: str = ""  # of a ready-made artifact, "" for a checkpoint


class Recipe(msgspec.Struct, frozen=True):
    """One way of building an artifact from a source; equal recipes give interchangeable artifacts."""

    format: str  # "gguf"
    precision: str  # the toolchain's own name: "Q4_K_M"
    source_fingerprint: str
    versions: dict[str, str]  # of every tool that leaves its mark on the bytes

    @property
    def key(self) -> str:
        encoded = msgspec.json.encode(self, order="deterministic")
        return f"{self.format}-{self.precision}-{hashlib.blake2b(encoded, digest_size=10).hexdigest()}"


class Quality(msgspec.Struct, frozen=True):
    """How far an artifact, run by its own engine, is from its source, over next tokens of the gate's texts."""

    divergence: float  # mean KL divergence of the source's distribution from the artifact's, in nats
    divergence_99: float  # that of the worst place in a hundred
    agreement: float  # fraction of the places where the source is sure at which both hold the same token the likeliest
    perplexity: float  # the artifact's over the source's
    accuracy: float | None  # answers of eval.jsonl that it gives right, over those that the source does; None without
    tokens: int  # places compared
    texts: int  # read: all, unless it was bad beyond doubt before
    of_texts: int  # that there are
    reference: str  # what ran the source: "transformers", "llamacpp"


class File(msgspec.Struct, frozen=True):
    """Of an artifact."""

    bytes: int
    digest: str  # blake2b, 16 bytes, hex


class Manifest(msgspec.Struct, frozen=True):
    """Lies in every artifact as manifest.json: what it is, of what, how it was made."""

    key: str
    recipe: Recipe
    source: Source
    files: dict[str, File]  # by name
    seconds: dict[str, float]  # by stage
    peak_bytes: int  # of memory, while it was built
    created: str  # ISO 8601, UTC
    enginehouse: str  # our version
    quality: Quality | None = None  # None: not compared with its source yet


class Artifact(msgspec.Struct, frozen=True):
    """Something an engine can load."""

    format: str
    precision: str
    path: str  # what the engine is given: a file for gguf, a folder for others
    bytes: int
    quality: Quality | None = None  # None: the source itself, or not compared with it yet
    key: str = ""  # in the store; "" for the source itself


class Export(msgspec.Struct, frozen=True):
    """The first half of a build, the same for several precisions: kept in the cache for the next of them."""

    precision: Callable[[Source, str], str]  # (source, precision) -> that of what it is made of
    # (checkpoint, the export's precision, empty folder, report): writes a source of the toolchain's own format
    make: Callable[[Source, str, Path, Report], None]


class Toolchain(msgspec.Struct, frozen=True):
    """One artifact format and the tool that makes it. Functions import their heavy libraries inside."""

    format: str
    precisions: dict[str, str]  # every accepted name -> the toolchain's own: {"int4": "Q4_K_M", "Q4_K_M": "Q4_K_M"}
    unavailable: Callable[[], str | None]  # why it cannot run here and the remedy, or None
    versions: Callable[[], dict[str, str]]
    refuses: Callable[[Source], str | None]  # cheap look at the headers: why this source cannot be built, or None
    needs_bytes: Callable[[Source, str], int]  # (source, precision) -> estimate of disk the build takes at its peak
    memory_bytes: Callable[[Source, str], int]  # (source, precision) -> estimate of what the build has resident at most
    seconds_per_gib: Mapping[str, float]  # of source, by stage: the prior until a build here has told better
    start_seconds: float  # that come on top of it whatever the source: imports
    build: Callable[[Source, str, Path, Report], None]  # (source, precision, empty folder, report): writes the artifact
    # (what the engine is given, token ids) -> for each sequence what the engine computes: float32, (tokens, vocabulary)
    logits: "Callable[[Path, list[list[int]]], Iterator[np.ndarray[Any, Any]]]"
    entry: str  # the file in the artifact folder that engines load, "" for the folder itself
    ladder: Mapping[str, str]  # own names that `precision: auto` goes up, from the smallest artifact to the most exact
    # one, until the quality gate holds; each with the reason why it is there

    # whether sources of this architecture were compared with the reference implementation, artifact by artifact; others
    # are on trial: see ladder.py
    proven: Callable[[Source], bool] = lambda source: True
    export: Export | None = None  # then `build` is given that in place of the source

    @property
    def exact(self) -> str:
        """The precision that shows whether the conversion is right."""
        return list(self.ladder)[-1]

    def dequantizes(self, source: Source) -> bool:
        """Whether a build begins with a checkpoint made of the source, a .gguf file."""
        return source.kind == "gguf" and self.format != "gguf"

    def recipe(self, source: Source, precision: str) -> Recipe:
        """For the toolchain's own name of a precision, with the tools installed now."""
        before = {"enginehouse-dequantized": DEQUANTIZED_VERSION} if self.dequantizes(source) else {}
        return Recipe(self.format, precision, source.fingerprint, self.versions() | before)


def bits(precision: str) -> int:
    """Of most weights, from a toolchain's own name: 4 for Q4_K_M, IQ4_XS, INT4_B32_H8 and mixed_4_6, 16 for BF16."""
    match = re.search(r"\d+", precision)
    assert match, precision
    return int(match[0])


def bytes_in_16_bits(source: Source) -> int:
    """What the weights of a source take as BF16: what builds are measured in."""
    return 2 * source.parameters or source.bytes


def bytes_as_checkpoint(source: Source) -> int:
    """What is there to convert: a .gguf file is made into 16 bits before."""
    return bytes_in_16_bits(source) if source.kind == "gguf" else source.bytes


def copy_companions(checkpoint: Path, folder: Path) -> None:
    """Copies what the checkpoint has of COMPANIONS, over what a tool wrote under those names."""
    for name in COMPANIONS:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, folder / name)
