"""aider-chat: a file written, a second turn with the history of the first.

`OPENAI_API_BASE=URL/v1`, `OPENAI_API_KEY=any`, `--model openai/NAME`
"""

import sys
from pathlib import Path

from tests.clients.agents import INSTALLED, Agent, holds

quiet = ["--yes-always", "--no-git", "--no-check-update", "--no-show-model-warnings", "--analytics-disable"]
environment = {"OPENAI_API_BASE": f"{sys.argv[1]}/v1", "OPENAI_API_KEY": "none", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
start = [Path(f"{INSTALLED}-aider") / "bin" / "aider", "--model", "openai/agent", *quiet]
aider = Agent(*start, "--restore-chat-history", **environment)

aider.says("--message", "greeting.txt\n```\ngood day\n```\n")
assert (aider.project / "greeting.txt").read_text() == "good day\n"
print("ok: a file is written")
holds(aider.says("--message", "and then?"), "and then?")
print("ok: a second turn has the first one's history")
