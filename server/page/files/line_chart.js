// Lines over the last minutes, drawn by script.

import { drawing } from "./element.js";

const HEIGHT = 170;
const LEFT = 52;
const BELOW = 22;
const ABOVE = 10;
const GAP_SECONDS = 6;

// `series`: [{colour, points: [{at, value}]}]; `now` and `span` in seconds; `shown`: a value as text.
export function lineChart({ label, series, now, span, width, shown }) {
  const most = ceiling(Math.max(0, ...series.flatMap(({ points }) => points.map((point) => point.value))));
  const x = (at) => LEFT + (1 - (now - at) / span) * (width - LEFT - 6);
  const y = (value) => ABOVE + (1 - value / most) * (HEIGHT - ABOVE - BELOW);
  const lines = series.map(({ points, colour }) =>
    drawing("path", { d: path(points, x, y), class: `line series-${colour % 6}` }),
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

// Broken where there is nothing for a while; a point that stands alone is a dot.
function path(points, x, y) {
  return points
    .map(({ at, value }, place) => {
      const joined = place > 0 && at - points[place - 1].at < GAP_SECONDS;
      const where = `${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      return joined ? `L${where}` : `M${where}l0 0`;
    })
    .join("");
}

// The next of 1, 2, 5, 10, 20 … that is not below.
function ceiling(value) {
  if (value <= 0) return 1;
  const ten = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * ten).find((step) => step >= value);
}
