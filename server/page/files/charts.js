// Speed, first token and queue over the last minutes, by model.

import { legend } from "./bars.js";
import { element } from "./element.js";
import { means, rates, values } from "./history.js";
import { lineChart } from "./line_chart.js";
import { rate, seconds } from "./units.js";
import { house, KEPT_SECONDS } from "./watch.js";

export const TITLE = "Charts";

const CHARTS = [
  { title: "Tokens per second", counts: "tokens", points: (model) => rates("tokens", model), shown: rate, axis: brief },
  {
    title: "Time to the first token",
    counts: "firstTokenCount",
    points: (model) => means("firstTokenSum", "firstTokenCount", model),
    shown: seconds,
    axis: seconds,
  },
  {
    title: "Requests under way or waiting",
    counts: "underWay",
    points: (model) => values("underWay", model),
    shown: brief,
    axis: brief,
  },
];

export function make() {
  const charts = CHARTS.map((chart) => {
    const place = element("div");
    const node = element("section", { "aria-label": chart.title }, element("h3", {}, chart.title), place);
    return { ...chart, place, node };
  });
  const since = element("p", { class: "aside" }, "The last five minutes, as far back as this page has been open.");
  const node = element("div", {}, element("h2", {}, "Charts"), since, ...charts.map((one) => one.node));
  return { node, update: () => charts.forEach(draw) };
}

function draw({ title, counts, points, shown, axis, place }) {
  if (!house.samples.at(-1)?.[counts]) {
    place.replaceChildren(element("p", { class: "aside" }, "This server does not count it."));
    return;
  }
  const all = house.models.map(({ id }, colour) => ({ name: id, colour, points: points(id) }));
  const series = all.filter((one) => one.points.some(({ value }) => value > 0));
  const last = series.map(({ name, colour, points }) => ({ name, colour, value: shown(points.at(-1).value) }));
  const told = last.map(({ name, value }) => `${name} ${value}`).join(", ") || "nothing was asked";
  const now = performance.now() / 1000;
  const width = Math.max(260, place.clientWidth);
  const chart = lineChart({ label: `${title}: ${told}`, series, now, span: KEPT_SECONDS, width, shown: axis });
  place.replaceChildren(
    chart,
    last.length ? legend(last) : element("p", { class: "aside" }, "Nothing was asked in this time."),
  );
}

function brief(value) {
  return String(Number(value.toPrecision(3)));
}
