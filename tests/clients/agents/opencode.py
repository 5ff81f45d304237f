"""opencode-ai: commands, a continued session.

In `opencode.json`: a provider with `"npm": "@ai-sdk/openai-compatible"`, `"baseURL": "URL/v1"` and the model's
`limit`
"""

import json
import sys

from tests.clients.agents import MODULES, Agent, call, holds

opencode = Agent(MODULES / "opencode-ai/bin/opencode.exe", "run", "-m", "house/agent")
house = {
    "npm": "@ai-sdk/openai-compatible",
    "options": {"baseURL": f"{sys.argv[1]}/v1", "apiKey": "none"},
    "models": {"agent": {"limit": {"context": 200_000, "output": 8000}}},
}
(opencode.project / "opencode.json").write_text(json.dumps({"provider": {"house": house}}))

assert "42" in opencode.says(call("bash", command="expr 6 '*' 7", description="multiply")).split()
print("ok: a command is run, and its result told")
holds(opencode.says("--continue", "and then?"), "and then?")
print("ok: the session is continued")
