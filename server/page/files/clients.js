// How to point each client here, to copy.

import { root } from "./api.js";
import { copyText } from "./answer.js";
import { CLIENTS, filled } from "./client_settings.js";
import { element } from "./element.js";
import { key } from "./key.js";
import { makeModelChoice } from "./model_choice.js";

export const TITLE = "Clients";

export function make() {
  const model = makeModelChoice("clients-model", "Model");
  const list = element("div", { class: "clients" });
  const node = element(
    "div",
    {},
    element("h2", {}, "Clients"),
    element(
      "p",
      {},
      "OpenAI's API is at ",
      element("code", {}, `${root}/v1`),
      ", Anthropic's and Ollama's at ",
      element("code", {}, root),
      ". Where this server wants a key, put it for ",
      element("code", {}, "KEY"),
      "; else any text will do.",
    ),
    model.node,
    list,
  );
  let drawn = "";

  function update() {
    model.update();
    const wanted = `${model.field.value} ${Boolean(key())}`;
    if (drawn === wanted) return;
    drawn = wanted;
    list.replaceChildren(...CLIENTS.flatMap(({ group, clients }) => [element("h3", {}, group), ...clients.map(shown)]));
  }

  function shown({ name, place, text }) {
    const ready = filled(text, root, model.field.value, key() ? "KEY" : "any");
    const copy = element(
      "button",
      { type: "button", class: "quiet copy", "aria-label": `Copy: ${name}`, onclick: () => copyText(ready) },
      "Copy",
    );
    const head = element("div", { class: "head" }, element("h4", {}, name, " ", element("small", {}, place)), copy);
    return element("article", { class: "card", "aria-label": name }, head, element("pre", { tabindex: "0" }, ready));
  }
  model.field.addEventListener("change", update);
  return { node, update };
}
