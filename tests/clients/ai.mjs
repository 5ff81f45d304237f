// ai, @ai-sdk/openai-compatible: chat, stream, tools run by the client, objects, embeddings, thoughts.
// `createOpenAICompatible({ name: "house", baseURL: "URL/v1" })`

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const PARIS = "The capital of France is Paris.";
const NUMBERS = Array.from({ length: 20 }, (_, at) => at + 1).join(", ");
const FRANCE = "What is the capital of France?";
const COUNT = "Count from 1 to 20.";
const TARA = "As JSON: Tara is 38 years old and lives in Washington.";
const Person = z.object({ name: z.string(), age: z.int(), city: z.string() });

const house = createOpenAICompatible({
  name: "enginehouse",
  baseURL: `${process.argv[2]}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const asked = { model: house("pocket"), temperature: 0, maxRetries: 0 };

const { text, usage } = await generateText({ ...asked, prompt: FRANCE });
assert.equal(text, PARIS);
assert(usage.outputTokens > 1);
console.log("ok: the capital of France");

const stream = streamText({ ...asked, prompt: COUNT });
const pieces = await Array.fromAsync(stream.textStream);
assert.equal(pieces.join(""), NUMBERS);
assert(pieces.length > 1);
assert((await stream.usage).outputTokens > 1);
console.log("ok: the answer is streamed, its usage at the end");

const cities = [];
const get_weather = tool({
  description: "Current weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: ({ city }) => {
    cities.push(city);
    return { sky: "sunny", degrees: 20 };
  },
});
const loop = { ...asked, prompt: "What is the weather in Oslo?", tools: { get_weather }, stopWhen: stepCountIs(3) };
assert.equal((await generateText(loop)).text, "The weather in Oslo is sunny, 20 degrees.");
assert.equal(await streamText(loop).text, "The weather in Oslo is sunny, 20 degrees.");
assert.deepEqual(cities, ["Oslo", "Oslo"]);
console.log("ok: a tool is run and its result told, whole and streamed");

const tara = { name: "Tara", age: 38, city: "Washington" };
const structured = { ...asked, output: Output.object({ schema: Person }), prompt: TARA };
assert.deepEqual((await generateText(structured)).output, tara);
const objects = await Array.fromAsync(streamText(structured).partialOutputStream);
assert.deepEqual(objects.at(-1), tara);
assert(objects.length > 1);
console.log("ok: an object is made, whole and piece by piece");

const { embeddings } = await embedMany({ model: house.embeddingModel("pocket"), values: ["the sea", "the sky"] });
for (const embedding of embeddings) assert(Math.abs(Math.hypot(...embedding) - 1) < 1e-3);
assert.equal(embeddings.length, 2);
console.log("ok: texts are embedded");

const providerOptions = { enginehouse: { chat_template_kwargs: { enable_thinking: true } } };
const thought = await generateText({ ...asked, prompt: FRANCE, providerOptions });
assert.match(thought.reasoningText, /Paris/);
assert.equal(thought.text, PARIS);
console.log("ok: a thought is told from the answer");

await assert.rejects(generateText({ ...asked, model: house("nobody"), prompt: FRANCE }), /nobody/);
console.log("ok: an unknown model is named");
