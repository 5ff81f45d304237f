// The house at a glance: this machine, its memory by model, its runtimes and why some cannot run.

import { element, facts, table } from "./element.js";
import { latest } from "./history.js";
import { stacked } from "./bars.js";
import { bytes, duration, many } from "./units.js";
import { house } from "./watch.js";

export const TITLE = "House";
const RUNTIME_HEADS = ["runtime", "devices", "converts checkpoints", "versions"];

export function make() {
  const tiles = element("div", { class: "tiles" });
  const memory = element("div");
  const machine = element("div");
  const runtimes = element("div");
  const node = element(
    "div",
    {},
    element("h2", {}, "The house"),
    tiles,
    section("Memory", memory),
    section("Runtimes", runtimes),
    section("Machine", machine),
  );
  let drawn = null; // of the host

  function update() {
    tiles.replaceChildren(...figures().map(tile));
    memory.replaceChildren(...memoryByModel());
    if (house.host && drawn !== house.host) {
      drawn = house.host;
      runtimes.replaceChildren(table("Runtimes", RUNTIME_HEADS, house.host.runtimes.map(row)));
      machine.replaceChildren(hardware(house.host));
    }
  }
  return { node, update };
}

function section(title, content) {
  return element("section", { "aria-label": title }, element("h3", {}, title), content);
}

function figures() {
  const loaded = house.models.filter((model) => model.status.state === "loaded");
  const requests = house.models.reduce((sum, model) => sum + model.status.requests, 0);
  const used = loaded.reduce((sum, model) => sum + model.status.memory_bytes, 0);
  const budget = house.host?.memory_budget_bytes;
  const speed = latest();
  return [
    ["models loaded", `${loaded.length}`, `of ${house.models.length}`],
    ["requests under way", `${requests}`, ""],
    ["memory of models", bytes(used), budget ? `of ${bytes(budget)}` : ""],
    ["speed of all answers together", speed < 10 ? speed.toFixed(1) : speed.toFixed(0), "tokens/s"],
  ];
}

function tile([name, value, beside]) {
  const figure = element("p", { class: "figure" }, value, " ", element("small", {}, beside));
  return element("div", { class: "tile" }, figure, element("p", { class: "aside" }, name));
}

function memoryByModel() {
  const used = house.models.filter((model) => model.status.memory_bytes > 0);
  if (!used.length)
    return [
      element("p", { class: "aside" }, "No model is loaded: one is when it is first asked for, or under Models."),
    ];
  const parts = used.map((model) => ({ name: model.id, value: model.status.memory_bytes }));
  const whole = house.host?.memory_budget_bytes ?? parts.reduce((sum, part) => sum + part.value, 0);
  return [stacked(parts, whole, bytes)];
}

function row(runtime) {
  const usable = runtime.devices.filter((device) => !device.unavailable);
  const works = !runtime.unavailable && usable.length > 0;
  const why = runtime.unavailable ?? runtime.devices.map((device) => device.unavailable).join("; ");
  const devices = usable.map((device) => `${device.name} ${device.description}`.trim()).join(", ");
  const versions = Object.entries(runtime.versions).map((one) => one.join(" "));
  return [
    element(
      "span",
      {},
      runtime.name,
      " ",
      element("span", { class: works ? "state loaded" : "state" }, works ? "ready" : "unavailable"),
    ),
    works ? devices : element("span", { class: "reason" }, why),
    runtime.unavailable ? "" : element("span", { class: "reason" }, runtime.cannot_build ?? "yes"),
    versions.join(", "),
  ];
}

function hardware({ host }) {
  const started = Math.min(...house.models.map((model) => model.created));
  return facts([
    ["processor", `${host.processor}, ${many(host.cores, "core")}`],
    ["instructions", host.instructions.join(", ")],
    ["memory", host.memory_bytes ? bytes(host.memory_bytes) : ""],
    ["system", `${host.system} ${host.release} ${host.machine}`],
    ["kind of host", host.kind],
    ["Enginehouse", `${house.version}, up ${duration(Date.now() / 1000 - started)}`],
  ]);
}
