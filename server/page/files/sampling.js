// The fields of a request that are not its messages: sampling, tools, a schema. What is empty is not sent.

import { element } from "./element.js";

const NUMBERS = {
  temperature: "temperature",
  top_p: "top p",
  top_k: "top k",
  min_p: "min p",
  repetition_penalty: "repetition penalty",
  max_tokens: "most tokens",
  seed: "seed",
};
const EFFORTS = ["", "none", "low", "medium", "high"];
const TOOLS = `[{"type": "function", "function": {"name": "weather",
  "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}}]`;
const SCHEMA = `{"type": "object", "properties": {"capital": {"type": "string"}}}`;

export function makeSampling(prefix, { withTools = true } = {}) {
  const numbers = Object.entries(NUMBERS).map(([name, label]) => [name, labelled(prefix, name, label, numberField())]);
  const effort = labelled(prefix, "reasoning_effort", "thinking", choice(EFFORTS));
  const stop = labelled(prefix, "stop", "stop texts, one a line", area(2));
  const tools = labelled(prefix, "tools", "tools, as JSON", area(4, TOOLS));
  const schema = labelled(prefix, "schema", "JSON schema of the answer", area(4, SCHEMA));
  const node = element(
    "div",
    { class: "sampling" },
    element("div", { class: "numbers" }, ...numbers.map(([, one]) => one.node), effort.node),
    ...(withTools ? [stop.node, tools.node, schema.node] : []),
  );

  // Throws an Error that names a field which cannot be read.
  function fields() {
    const found = {};
    for (const [name, { field }] of numbers) {
      if (field.validity.badInput) throw new Error(`'${NUMBERS[name]}' is not a number`);
      if (field.value !== "") found[name] = Number(field.value);
    }
    if (effort.field.value) found.reasoning_effort = effort.field.value;
    const stops = stop.field.value.split("\n").filter(Boolean);
    if (stops.length) found.stop = stops;
    const listed = parsed(tools.field, "tools");
    if (listed !== undefined) found.tools = listed;
    const wanted = parsed(schema.field, "JSON schema");
    if (wanted !== undefined)
      found.response_format = { type: "json_schema", json_schema: { name: "answer", schema: wanted } };
    return found;
  }
  return { node, fields };
}

function labelled(prefix, name, label, field) {
  field.id = `${prefix}-${name}`;
  return { field, node: element("div", { class: "field" }, element("label", { for: field.id }, label), field) };
}

function numberField() {
  return element("input", { type: "number", step: "any", inputmode: "decimal" });
}

function choice(values) {
  return element("select", {}, ...values.map((value) => element("option", { value }, value || "default")));
}

function area(rows, placeholder) {
  return element("textarea", { rows, placeholder, spellcheck: "false" });
}

function parsed(field, name) {
  if (!field.value.trim()) return undefined;
  try {
    return JSON.parse(field.value);
  } catch (error) {
    throw new Error(`'${name}' is not JSON: ${error.message}`);
  }
}
