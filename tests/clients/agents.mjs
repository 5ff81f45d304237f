// @openai/codex, @anthropic-ai/claude-code: headless, a fresh home, a tool called and its result, the session resumed, an image, a search for tools.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const root = process.argv[2];
const installed = resolve("node_modules");
const home = mkdtempSync(join(tmpdir(), "agents-"));
const project = join(home, "project");
const picture = join(project, "dot.png");
const DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
const UNSEEN = /an image stood here, and is left out/;

// What makes the model `agent` call a tool: it says what its last message says.
const call = (name, args) => `do <tool_call>${JSON.stringify({ name, arguments: args })}</tool_call>`;

function ran(client, args, environment) {
  const at = join(installed, client);
  const bin = JSON.parse(readFileSync(join(at, "package.json"))).bin;
  const script = client.endsWith("claude-code") ? "cli-wrapper.cjs" : Object.values(bin)[0];
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(at, script), ...args], {
    cwd: project,
    env: { PATH: process.env.PATH, HOME: home, TERM: "dumb", ...environment },
    input: "",
    encoding: "utf8",
    timeout: 100_000,
  });
  assert.equal(status, 0, `${client}: ${stdout}\n${stderr}`);
  return stdout;
}

function codex(...args) {
  const provider = `{name="house",base_url="${root}/v1",wire_api="responses",env_key="KEY"}`;
  const settings = ["-c", "model_provider=house", "-c", `model_providers.house=${provider}`];
  return ran("@openai/codex", ["exec", "--skip-git-repo-check", "-m", "agent", ...settings, ...args], { KEY: "none" });
}

function claude(...args) {
  const environment = { ANTHROPIC_BASE_URL: root, ANTHROPIC_API_KEY: "none" };
  const settings = ["-p", "--model", "agent", "--allowedTools=Bash,Read,ToolSearch"];
  return ran("@anthropic-ai/claude-code", [...settings, ...args], environment);
}

mkdirSync(project);
writeFileSync(picture, Buffer.from(DOT, "base64"));
try {
  assert.match(codex(call("exec_command", { cmd: "expr 6 '*' 7" })), /^42$/m);
  console.log("ok: codex runs a command and says what came of it");
  assert.match(codex("resume", "--last", call("view_image", { path: picture })), UNSEEN);
  assert.match(codex("resume", "--last", "and then?"), /and then\?/);
  console.log("ok: codex goes on, also after an image");

  assert.match(claude(call("Bash", { command: "expr 6 '*' 7", description: "multiply" })), /^42$/m);
  console.log("ok: claude-code runs a command and says what came of it");
  assert.match(claude("--continue", call("Read", { file_path: picture })), UNSEEN);
  assert.match(claude("--continue", call("ToolSearch", { query: "select:WebFetch", max_results: 1 })), /'WebFetch'/);
  assert.match(claude("--continue", "and then?"), /and then\?/);
  console.log("ok: claude-code goes on, also after an image and a search for tools");
} finally {
  rmSync(home, { recursive: true, force: true });
}
