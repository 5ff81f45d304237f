"""@qwen-code/qwen-code: commands, a continued session.

`OPENAI_BASE_URL=URL/v1`, `OPENAI_API_KEY=any`, `OPENAI_MODEL=NAME`, `--auth-type openai`
"""

import sys

from tests.clients.agents import MODULES, NODE, Agent, call, holds

environment = {"OPENAI_BASE_URL": f"{sys.argv[1]}/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": "agent"}
start = [NODE, MODULES / "@qwen-code/qwen-code/cli-entry.js", "--auth-type", "openai", "--yolo"]
qwen = Agent(*start, **environment)

said = qwen.says("-p", call("run_shell_command", command="expr 6 '*' 7", is_background=False))
holds(said, "Output: 42")
print("ok: a command is run, and its result told")
holds(qwen.says("--continue", "-p", "and then?"), "and then?")
print("ok: the session is continued")
