"""Proves an IR before it is used: the pipeline that will serve it loads it and says a few tokens."""

import math
import re
from pathlib import Path

from enginehouse.optimize.artifact import ELSEWHERE, CannotBuild, Report
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.toolchains.openvino.arithmetic import properties

PROMPT, ANSWER = 8, 4  # tokens


def check(folder: Path, report: Report) -> None:
    """Raises CannotBuild with what OpenVINO said."""
    report("check", 0.0)
    try:
        logprobs = generate(folder)
    except RuntimeError as error:
        raise CannotBuild(refusal(folder, str(error).strip().splitlines()[-1])) from error
    if len(logprobs) != ANSWER or not all(math.isfinite(logprob) for logprob in logprobs):
        raise CannotBuild("what was built does not give numbers; try another precision")
    report("check", 1.0)


def refusal(folder: Path, reason: str) -> str:
    """`reason`: the last line of what OpenVINO said; of a graph that its paged attention does not fit, a parameter."""
    family = (read_json(folder / "config.json").get("architectures") or ["?"])[0]
    if left := re.search(r"Parameter (\w+) \(\)", reason):
        reason = f"its paged attention leaves the input '{left[1]}' over"
    return f"OpenVINO GenAI does not run '{family}' as it is exported: {reason}; {ELSEWHERE}"


def generate(folder: Path) -> list[float]:
    """The log-probabilities of an answer's tokens."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.num_kv_blocks = 4
    chosen = properties(folder, openvino.Core())
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", chosen)
    config = openvino_genai.GenerationConfig(
        max_new_tokens=ANSWER, ignore_eos=True, logprobs=1, stop_token_ids={0}, eos_token_id=0
    )
    prompt = openvino.Tensor(np.arange(1, PROMPT + 1, dtype=np.int64)[None])
    handle = pipeline.add_request(0, prompt, config)
    logprobs: list[float] = []
    while pipeline.has_non_finished_requests():
        pipeline.step()
        while handle.can_read():
            logprobs += [value for output in handle.read().values() for value in output.generated_log_probs]
    return logprobs
