"""@openai/codex: commands, images, a resumed session.

In `~/.codex/config.toml`: `model_provider = "house"` and `[model_providers.house]` with `base_url = "URL/v1"`,
`wire_api = "responses"`
"""

import sys

from tests.clients.agents import MODULES, NODE, PICTURE, UNSEEN, Agent, call, holds

provider = f'{{name="house",base_url="{sys.argv[1]}/v1",wire_api="responses",env_key="KEY"}}'
settings = ["-c", "model_provider=house", "-c", f"model_providers.house={provider}"]
start = [NODE, MODULES / "@openai/codex/bin/codex.js", "exec", "--skip-git-repo-check", "-m", "agent", *settings]
codex = Agent(*start, KEY="none")
(codex.project / "dot.png").write_bytes(PICTURE)

assert "42" in codex.says(call("exec_command", cmd="expr 6 '*' 7")).split()
print("ok: a command is run, and its result told")
holds(codex.says("resume", "--last", call("view_image", path=str(codex.project / "dot.png"))), UNSEEN)
print("ok: an image is named in words")
holds(codex.says("resume", "--last", "and then?"), "and then?")
print("ok: the session is resumed")
