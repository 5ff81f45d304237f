// Which model is asked: a list that follows the server's.

import { element } from "./element.js";
import { house } from "./watch.js";

export function makeModelChoice(id, label, place = 0) {
  const field = element("select", { id });
  const node = element("div", { class: "field model" }, element("label", { for: id }, label), field);

  function update() {
    const names = house.models.map((model) => model.id);
    if (names.join("\n") === [...field.options].map((option) => option.value).join("\n")) return;
    const chosen = field.value || names[Math.min(place, names.length - 1)];
    field.replaceChildren(...names.map((value) => element("option", { value }, value)));
    if (names.includes(chosen)) field.value = chosen;
  }
  return { node, field, update };
}
