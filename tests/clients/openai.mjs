// openai: chat, stream, tools run by the client, parsed output, embeddings, responses, errors by type.
// `new OpenAI({ baseURL: "URL/v1", apiKey: "any" })`

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const PARIS = "The capital of France is Paris.";
const NUMBERS = Array.from({ length: 20 }, (_, at) => at + 1).join(", ");
const said = (content) => [{ role: "user", content }];
const FRANCE = said("What is the capital of France?");
const COUNT = said("Count from 1 to 20.");
const TARA = said("As JSON: Tara is 38 years old and lives in Washington.");
const Person = z.object({ name: z.string(), age: z.int(), city: z.string() });

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model: "pocket", temperature: 0 };

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert(models.includes("pocket"));
console.log("ok: the models are listed");

const reply = await client.chat.completions.create({ ...asked, messages: FRANCE });
assert.equal(reply.choices[0].message.content, PARIS);
console.log("ok: the capital of France");

const pieces = [];
for await (const chunk of await client.chat.completions.create({ ...asked, messages: COUNT, stream: true })) {
  pieces.push(chunk.choices[0].delta.content ?? "");
}
assert.equal(pieces.join(""), NUMBERS);
assert(pieces.filter(Boolean).length > 1);
console.log("ok: the answer is streamed");

const cities = [];
const getWeather = zodFunction({
  name: "get_weather",
  description: "Current weather in a city",
  parameters: z.object({ city: z.string() }),
  function: ({ city }) => {
    cities.push(city);
    return { sky: "sunny", degrees: 20 };
  },
});
for (const stream of [false, true]) {
  const messages = said("What is the weather in Oslo?");
  const runner = client.chat.completions.runTools({ ...asked, messages, tools: [getWeather], stream });
  assert.equal(await runner.finalContent(), "The weather in Oslo is sunny, 20 degrees.");
}
assert.deepEqual(cities, ["Oslo", "Oslo"]);
console.log("ok: a tool is run and its result told, whole and streamed");

const response_format = zodResponseFormat(Person, "person");
const parsed = await client.chat.completions.parse({ ...asked, messages: TARA, response_format });
assert.deepEqual(parsed.choices[0].message.parsed, { name: "Tara", age: 38, city: "Washington" });
console.log("ok: an answer is parsed as a type");

const embedded = await client.embeddings.create({ model: "pocket", input: ["the sea", "the sky"] });
assert.equal(embedded.data.length, 2);
for (const { embedding } of embedded.data) assert(Math.abs(Math.hypot(...embedding) - 1) < 1e-3);
console.log("ok: texts are embedded");

const response = await client.responses.stream({ ...asked, input: FRANCE }).finalResponse();
assert.equal(response.output_text, PARIS);
console.log("ok: responses are streamed");

await assert.rejects(client.chat.completions.create({ ...asked, model: "nobody", messages: FRANCE }), OpenAI.NotFoundError);
await assert.rejects(
  client.chat.completions.create({ ...asked, temperature: -1, messages: FRANCE }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
);
console.log("ok: errors have their types");
