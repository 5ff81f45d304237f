"""Loads what was built and runs it: Olive's own success says nothing about the model."""

import json
import os
from pathlib import Path

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.toolchains.onnx.precisions import Precision

TOKENS = 8
UNPACKED = {"session.disable_prepacking": "1"}


def check(folder: Path, precision: Precision, report: Report) -> None:
    """Raises CannotBuild unless the model says a few tokens from finite logits."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import numpy as np
    import onnxruntime_genai

    report("check", 0.0)
    try:
        config = onnxruntime_genai.Config(str(folder))
        if precision.bits == 32:  # else the runtime makes a second copy of the weights, for speed
            config.overlay(json.dumps({"model": {"decoder": {"session_options": UNPACKED}}}))
        model = onnxruntime_genai.Model(config)
        parameters = onnxruntime_genai.GeneratorParams(model)
        parameters.set_search_options(max_length=3 + TOKENS, do_sample=False)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(np.array([1, 2, 3], np.int32))
        for done in range(TOKENS - 1):
            logits = generator.get_logits()[0, -1]
            if not np.isfinite(logits).all():
                raise CannotBuild("the model that was built gives logits that are not numbers")
            generator.append_tokens(np.array([int(logits.argmax())], np.int32))
            report("check", (done + 1) / TOKENS)
    except RuntimeError as error:
        raise CannotBuild(f"the model that was built does not run: {error}") from error
    report("check", 1.0)
