// How each client is pointed here. URL, NAME and KEY stand for the address, the model and the key; `script` is that in
// docs/clients.json that tries the client out: a test compares the settings with those.

const AGENTS = [
  {
    script: "agents/claude_code.py",
    name: "Claude Code",
    place: "or: enginehouse launch claude",
    text: `export ANTHROPIC_BASE_URL=URL ANTHROPIC_API_KEY=KEY
export ANTHROPIC_DEFAULT_HAIKU_MODEL=NAME CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
claude --model NAME`,
  },
  {
    script: "agents/codex.py",
    name: "Codex",
    place: "~/.codex/config.toml, or: enginehouse launch codex",
    text: `model = "NAME"
model_provider = "house"
web_search = "disabled"

[model_providers.house]
name = "house"
base_url = "URL/v1"
wire_api = "responses"
env_key = "ENGINEHOUSE_API_KEY"  # a variable that holds KEY`,
  },
  {
    script: "agents/opencode.py",
    name: "opencode",
    place: "opencode.json, or: enginehouse launch opencode",
    text: `{"provider": {"house": {"npm": "@ai-sdk/openai-compatible",
  "options": {"baseURL": "URL/v1", "apiKey": "KEY"},
  "models": {"NAME": {"limit": {"context": 32768, "output": 8000}}}}},
 "model": "house/NAME", "small_model": "house/NAME"}`,
  },
  {
    script: "agents/qwen_code.py",
    name: "qwen-code",
    place: "or: enginehouse launch qwen",
    text: `export OPENAI_BASE_URL=URL/v1 OPENAI_API_KEY=KEY OPENAI_MODEL=NAME
qwen --auth-type openai`,
  },
  {
    script: "agents/aider.py",
    name: "aider",
    place: "or: enginehouse launch aider",
    text: `export OPENAI_API_BASE=URL/v1 OPENAI_API_KEY=KEY
aider --model openai/NAME --no-show-model-warnings --no-check-update`,
  },
  {
    script: "agents/continue_cli.py",
    name: "Continue",
    place: "~/.continue/config.yaml, or: enginehouse launch continue",
    text: `name: house
version: 1.0.0
schema: v1
models: [{name: NAME, provider: openai, model: NAME, apiBase: URL/v1, apiKey: KEY}]`,
  },
  {
    script: "smolagents.py",
    name: "smolagents",
    place: "Python",
    text: `OpenAIServerModel(model_id="NAME", api_base="URL/v1", api_key="KEY")`,
  },
];

const LIBRARIES = [
  {
    script: "openai.py",
    name: "OpenAI",
    place: "Python",
    text: `from openai import OpenAI

client = OpenAI(base_url="URL/v1", api_key="KEY")
client.chat.completions.create(model="NAME", messages=[{"role": "user", "content": "Hi"}])`,
  },
  {
    script: "openai.mjs",
    name: "OpenAI",
    place: "JavaScript",
    text: `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "URL/v1", apiKey: "KEY" });
await client.chat.completions.create({ model: "NAME", messages: [{ role: "user", content: "Hi" }] });`,
  },
  {
    script: "anthropic.py",
    name: "Anthropic",
    place: "Python",
    text: `from anthropic import Anthropic

client = Anthropic(base_url="URL", api_key="KEY")
client.messages.create(model="NAME", max_tokens=100, messages=[{"role": "user", "content": "Hi"}])`,
  },
  {
    script: "ollama.py",
    name: "Ollama",
    place: "Python",
    text: `import ollama

ollama.Client(host="URL").chat(model="NAME", messages=[{"role": "user", "content": "Hi"}])
# for other programs: OLLAMA_HOST=URL`,
  },
  {
    script: "ollama.mjs",
    name: "Ollama",
    place: "JavaScript",
    text: `import { Ollama } from "ollama";

const ollama = new Ollama({ host: "URL" });
await ollama.chat({ model: "NAME", messages: [{ role: "user", content: "Hi" }] });`,
  },
  {
    script: "ai.mjs",
    name: "AI SDK",
    place: "JavaScript",
    text: `import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const house = createOpenAICompatible({ name: "house", baseURL: "URL/v1", apiKey: "KEY" });
const model = house("NAME");`,
  },
  {
    script: "langchain_openai.py",
    name: "LangChain",
    place: "Python",
    text: `from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ChatOpenAI(model="NAME", base_url="URL/v1", api_key="KEY")
OpenAIEmbeddings(model="NAME", base_url="URL/v1", api_key="KEY", check_embedding_ctx_length=False)`,
  },
  {
    script: "llama_index.py",
    name: "LlamaIndex",
    place: "Python",
    text: `from llama_index.llms.openai_like import OpenAILike

OpenAILike(model="NAME", api_base="URL/v1", is_chat_model=True, is_function_calling_model=True, api_key="KEY")`,
  },
  {
    script: "litellm.py",
    name: "LiteLLM",
    place: "Python",
    text: `litellm.completion(model="hosted_vllm/NAME", api_base="URL/v1", api_key="KEY",
                   messages=[{"role": "user", "content": "Hi"}])`,
  },
  {
    script: "pydantic_ai.py",
    name: "Pydantic AI",
    place: "Python",
    text: `OpenAIChatModel("NAME", provider=OpenAIProvider(base_url="URL/v1", api_key="KEY"))`,
  },
  {
    script: "instructor.py",
    name: "Instructor",
    place: "Python",
    text: `instructor.from_openai(OpenAI(base_url="URL/v1", api_key="KEY"))`,
  },
];

const COMMANDS = [
  {
    script: null,
    name: "curl",
    place: "",
    text: `curl URL/v1/chat/completions -H 'authorization: Bearer KEY' -H 'content-type: application/json' \\
  -d '{"model": "NAME", "messages": [{"role": "user", "content": "Hi"}]}'`,
  },
  {
    script: "llm.py",
    name: "llm",
    place: "extra-openai-models.yaml",
    text: `- model_id: NAME
  model_name: NAME
  api_base: URL/v1
  supports_tools: true
  supports_schema: true`,
  },
  { script: "llm_ollama.py", name: "llm-ollama", place: "", text: `OLLAMA_HOST=URL llm -m NAME "Hi"` },
  {
    script: "lm_eval.py",
    name: "lm-eval",
    place: "",
    text: `lm_eval --model local-chat-completions --tasks TASK --apply_chat_template \\
  --model_args model=NAME,base_url=URL/v1/chat/completions,tokenizer=FOLDER`,
  },
  {
    script: null,
    name: "Open WebUI",
    place: "",
    text: `OPENAI_API_BASE_URL=URL/v1 OPENAI_API_KEY=KEY ENABLE_OLLAMA_API=false open-webui serve`,
  },
];

export const CLIENTS = [
  { group: "Coding agents", clients: AGENTS },
  { group: "Libraries", clients: LIBRARIES },
  { group: "Command line and others", clients: COMMANDS },
];

// The text with the address, model and key in it.
export function filled(text, url, name, key) {
  const given = { URL: url, NAME: name, KEY: key };
  return text.replace(/(?<![A-Za-z_])(URL|NAME|KEY)(?![A-Z_])/g, (word) => given[word]);
}
