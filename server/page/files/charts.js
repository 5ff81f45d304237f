// Speed, first token and queue over the last minutes, by model.

import { legend } from "./bars.js";
import { element } from "./element.js";
import { means, rates, values } from "./history.js";
import { lineChart } from "./line_chart.js";
import { NAMES } from "./metrics.js";
import { rate, seconds } from "./units.js";
import { house, KEPT_SECONDS } from "./watch.js";

export const TITLE = "Charts";

const CHARTS = [
  { title: "Tokens per second", needs: ["tokens"], points: (model) => rates("tokens", model), shown: rate, axis: (value) => value.toPrecision(2) },
  {
    title: "Time to the first token",
    needs: ["firstTokenSum", "firstTokenCount"],
    points: (model) => means("firstTokenSum", "firstTokenCount", model),
    shown: seconds,
    axis: seconds,
  },
  { title: "Requests under way or waiting", needs: ["underWay"], points: (model) => values("underWay", model), shown: String, axis: String },
];

export function make() {
  const shown = CHARTS.filter(({ needs }) => needs.every((name) => name in NAMES));
  const places = shown.map((chart) => {
    const place = element("div");
    return { ...chart, place, node: element("section", { "aria-label": chart.title }, element("h3", {}, chart.title), place) };
  });
  const heard = element("p", { class: "aside" }, "The last five minutes, as far back as this page has been open.");
  const node = element("div", {}, element("h2", {}, "Charts"), heard, ...places.map((one) => one.node));

  function update() {
    const now = performance.now() / 1000;
    for (const { title, points, shown, axis, place } of places) {
      const series = house.models.map(({ id }) => ({ name: id, points: points(id) }));
      const last = series.map(({ name, points }) => [name, points.length ? shown(points.at(-1).value) : "–"]);
      const label = `${title}: ${last.map((one) => one.join(" ")).join(", ")}`;
      const width = Math.max(280, place.clientWidth || 600);
      const chart = lineChart({ label, series, now, span: KEPT_SECONDS, width, shown: axis });
      place.replaceChildren(chart, legend(last));
    }
  }
  return { node, update };
}
