// Lines over the last minutes, drawn by script.

import { drawing } from "./element.js";

const HEIGHT = 170;
const LEFT = 52;
const BELOW = 22;
const ABOVE = 10;

// `series`: [{name, points: [{at, value}]}]; `now` and `span` in seconds; `shown`: a value as text.
export function lineChart({ label, series, now, span, width, shown }) {
  const most = ceiling(Math.max(0, ...series.flatMap(({ points }) => points.map((point) => point.value))));
  const x = (at) => LEFT + (1 - (now - at) / span) * (width - LEFT - 6);
  const y = (value) => ABOVE + (1 - value / most) * (HEIGHT - ABOVE - BELOW);
  const lines = series.map(({ points }, place) =>
    drawing("path", { d: path(points.map(({ at, value }) => [x(at), y(value)])), class: `line series-${place % 6}` }),
  );
  return drawing(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, class: "chart", role: "img", "aria-label": label },
    ...[0, 0.5, 1].flatMap((part) => level(y(part * most), width, shown(part * most))),
    ...[0, 0.5, 1].map((part) => moment(x(now - part * span), part, span)),
    ...lines,
  );
}

function level(at, width, text) {
  return [
    drawing("path", { d: `M${LEFT} ${at.toFixed(1)}H${width - 6}`, class: "grid" }),
    drawing("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, text),
  ];
}

function moment(at, part, span) {
  const anchor = part === 0 ? "end" : part === 1 ? "start" : "middle";
  const text = part === 0 ? "now" : `${(part * span) / 60} min ago`;
  return drawing("text", { x: at.toFixed(1), y: HEIGHT - 5, "text-anchor": anchor }, text);
}

function path(points) {
  return points.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

// The next of 1, 2, 5, 10, 20 … that is not below.
function ceiling(value) {
  if (value <= 0) return 1;
  const ten = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * ten).find((step) => step >= value);
}
