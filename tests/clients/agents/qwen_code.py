"""@qwen-code/qwen-code: commands, a continued session.

`OPENAI_BASE_URL=URL/v1`, `OPENAI_API_KEY=any`, `OPENAI_MODEL=NAME`, `--auth-type openai`
"""

import sys

from tests.clients.agents import MODULES, NODE, Agent, call, holds

environment = {"OPENAI_BASE_URL": f"{sys.argv[1]}/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": "agent"}
start = [NODE, MODULES / "@qwen-code/qwen-code/cli-entry.js", "--auth-type", "openai", "--yolo"]
qwen = Agent(*start, **environment)

# It loses what a command writes right before its end, sometimes: this one lives on for a second.
command = "expr 6 '*' 7; sleep 1"
said = qwen.says("-p", call("run_shell_command", command=command, is_background=False))
holds(said, "Output: 42")
print("ok: a command is run, and its result told")
holds(qwen.says("--continue", "-p", "and then?"), "and then?")
print("ok: the session is continued")
