"""@anthropic-ai/claude-code: commands, images, a search for tools, a continued session.

`ANTHROPIC_BASE_URL=URL`, `ANTHROPIC_API_KEY=any`, `--model NAME`
"""

import sys

from tests.clients.agents import MODULES, NODE, PICTURE, UNSEEN, Agent, call, holds

start = [NODE, MODULES / "@anthropic-ai/claude-code/cli-wrapper.cjs", "-p", "--model", "agent"]
environment = {"ANTHROPIC_BASE_URL": sys.argv[1], "ANTHROPIC_API_KEY": "none"}
claude = Agent(*start, "--allowedTools=Bash,Read,ToolSearch", **environment)
(claude.project / "dot.png").write_bytes(PICTURE)

assert "42" in claude.says(call("Bash", command="expr 6 '*' 7", description="multiply")).split()
print("ok: a command is run, and its result told")
holds(claude.says("--continue", call("Read", file_path=str(claude.project / "dot.png"))), UNSEEN)
print("ok: an image is named in words")
holds(claude.says("--continue", call("ToolSearch", query="select:WebFetch", max_results=1)), "'WebFetch'")
print("ok: a tool is searched for")
holds(claude.says("--continue", "and then?"), "and then?")
print("ok: the session is continued")
