// One bar of several parts, with their names and values below.

import { drawing, element } from "./element.js";

const WIDTH = 1000;

// `parts`: [{name, value}]; `whole`: what the full width stands for; `shown`: a value as text.
export function stacked(parts, whole, shown) {
  let from = 0;
  const pieces = parts.map(({ value }, place) => {
    const width = Math.max(2, (value / whole) * WIDTH);
    const piece = drawing("rect", { x: from, y: 0, width, height: 14, class: `series-${place % 6}` });
    from += width;
    return piece;
  });
  const described = parts.map(({ name, value }) => `${name} ${shown(value)}`).join(", ");
  const bar = drawing(
    "svg",
    {
      viewBox: `0 0 ${WIDTH} 14`,
      preserveAspectRatio: "none",
      class: "stack",
      role: "img",
      "aria-label": `${described}, of ${shown(whole)}`,
    },
    drawing("rect", { width: WIDTH, height: 14, class: "empty" }),
    ...pieces,
  );
  return element(
    "div",
    {},
    bar,
    legend(parts.map(({ name, value }, colour) => ({ name, colour, value: shown(value) }))),
  );
}

// Of [{name, value, colour}].
export function legend(entries) {
  return element("ul", { class: "legend" }, ...entries.map(entry));
}

function entry({ name, value, colour }) {
  const swatch = drawing("svg", { viewBox: "0 0 22 10", class: "swatch", "aria-hidden": "true" });
  swatch.append(drawing("path", { d: "M0 5h22", class: `line series-${colour % 6}` }));
  return element("li", {}, swatch, element("span", {}, name), " ", element("strong", {}, value));
}
