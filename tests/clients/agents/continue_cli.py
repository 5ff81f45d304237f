"""@continuedev/cli: commands, a resumed session.

In `config.yaml`: `models: [{name: NAME, provider: openai, model: NAME, apiBase: URL/v1, apiKey: any}]`
"""

import json
import sys

from tests.clients.agents import MODULES, NODE, Agent, call, holds

agent = Agent(NODE, MODULES / "@continuedev/cli/dist/cn.js", "-p", "--auto", "--config", "../config.yaml")
model = {"name": "agent", "provider": "openai", "model": "agent", "apiBase": f"{sys.argv[1]}/v1", "apiKey": "none"}
config = {"name": "house", "version": "1.0.0", "schema": "v1", "models": [model | {"roles": ["chat"]}]}
(agent.home / "config.yaml").write_text(json.dumps(config))

assert "42" in agent.says(call("Bash", command="expr 6 '*' 7")).split()
print("ok: a command is run, and its result told")
holds(agent.says("--resume", "and then?"), "and then?")
print("ok: the session is resumed")
