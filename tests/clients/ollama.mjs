// ollama: chat, stream, thoughts, tools there and back, format, embed, list, show, ps, a stream given up.
// `new Ollama({ host: "URL" })`

import assert from "node:assert/strict";
import { Ollama } from "ollama";

const model = "pocket";
const options = { temperature: 0 };
const said = (content) => [{ role: "user", content }];
const FRANCE = said("What is the capital of France?");
const PARIS = "The capital of France is Paris.";
const NUMBERS = Array.from({ length: 20 }, (_, at) => at + 1).join(", ");
const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Current weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const PERSON = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" }, city: { type: "string" } },
  required: ["name", "age", "city"],
};

const client = new Ollama({ host: process.argv[2] });

const reply = await client.chat({ model, options, messages: FRANCE });
assert.equal(reply.message.content, PARIS);
assert(reply.total_duration >= reply.prompt_eval_duration + reply.eval_duration);
console.log("ok: the capital of France");

const pieces = [];
for await (const part of await client.chat({ model, options, messages: said("Count from 1 to 20."), stream: true })) {
  pieces.push(part.message.content);
}
assert.equal(pieces.join(""), NUMBERS);
assert(pieces.filter(Boolean).length > 1);
console.log("ok: the answer is streamed");

const thoughtful = await client.chat({ model, options, messages: FRANCE, think: true });
assert(thoughtful.message.thinking);
console.log("ok: thoughts come apart");

const messages = said("What is the weather in Oslo?");
const called = await client.chat({ model, options, messages, tools: [WEATHER] });
const [call] = called.message.tool_calls;
assert.deepEqual([call.function.name, call.function.arguments], ["get_weather", { city: "Oslo" }]);
messages.push(called.message, { role: "tool", tool_name: "get_weather", content: '{"sky": "sunny", "degrees": 20}' });
const told = await client.chat({ model, options, messages, tools: [WEATHER] });
assert.equal(told.message.content, "The weather in Oslo is sunny, 20 degrees.");
console.log("ok: a tool is called and its result told");

const prompt = "As JSON: Tara is 38 years old and lives in Washington.";
const person = await client.generate({ model, options, prompt, format: PERSON });
assert.deepEqual(JSON.parse(person.response), { name: "Tara", age: 38, city: "Washington" });
console.log("ok: output keeps to a schema");

const { embeddings } = await client.embed({ model, input: ["the sea", "the sky"] });
assert.equal(embeddings.length, 2);
for (const vector of embeddings) assert(Math.abs(Math.hypot(...vector) - 1) < 1e-3);
console.log("ok: texts are embedded");

assert((await client.list()).models.some((one) => one.model === "pocket:latest"));
assert((await client.show({ model })).capabilities.includes("tools"));
assert((await client.ps()).models.some((one) => one.model === "pocket:latest"));
console.log("ok: models are listed, shown, and seen running");

const given = await client.chat({ model, options, messages: said("Count from 1 to 20."), stream: true });
await assert.rejects(async () => {
  for await (const part of given) given.abort();
}, { name: "AbortError" });
await assert.rejects(client.chat({ model: "nobody", messages: FRANCE }), { status_code: 404 });
console.log("ok: a stream is given up, and errors have their status");
