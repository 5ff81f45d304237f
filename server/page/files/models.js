// The models: what serves each and why, how far one is that is being made ready, to load and to unload.

import { good, call, json, named } from "./api.js";
import { element, say } from "./element.js";
import { explained } from "./explanation.js";
import { bytes, duration, many, number } from "./units.js";
import { house, look } from "./watch.js";

export const TITLE = "Models";
const FRESH_MS = 30_000;

export function make() {
  const cards = new Map(); // by model
  const list = element("div", { class: "cards" });
  const node = element("div", {}, element("h2", {}, "Models"), list);
  let explaining = false;

  function update() {
    for (const model of house.models) {
      if (!cards.has(model.id)) cards.set(model.id, makeCard(model));
      cards.get(model.id).update(model);
    }
    const there = new Set(house.models.map((model) => model.id));
    for (const id of [...cards.keys()].filter((id) => !there.has(id))) cards.delete(id);
    const nodes = [...cards.values()].map((card) => card.node);
    if (nodes.length !== list.children.length || nodes.some((one, place) => list.children[place] !== one)) {
      list.replaceChildren(...nodes);
    }
    explain();
  }

  // One after the other: each looks at files.
  async function explain() {
    if (explaining) return;
    explaining = true;
    for (const card of [...cards.values()]) if (node.isConnected) await card.explain();
    explaining = false;
  }
  return { node, update };
}

function makeCard({ id }) {
  const state = element("span", { class: "state" });
  const about = element("p", { class: "aside" });
  const served = element("p");
  const reason = element("p", { class: "reason" });
  const progress = element("div", { class: "progress" });
  const failure = element("p", { class: "failure", role: "alert" });
  const why = element("div");
  const load = element("button", { type: "button", onclick: () => act({}, "loaded") }, "Load");
  const unload = element(
    "button",
    { type: "button", onclick: () => act({ keep_alive: 0 }, "unloaded when its last request has ended") },
    "Unload",
  );
  const title = element("h3", {}, id, " ", state);
  const details = element("details", {}, element("summary", {}, "Every candidate, with its numbers"), why);
  const node = element(
    "article",
    { class: "card", "aria-label": `Model ${id}` },
    element("div", { class: "head" }, title, element("div", { class: "actions" }, load, unload)),
    about,
    served,
    progress,
    reason,
    failure,
    details,
  );
  let asked = { at: -Infinity, state: "" }; // when it was explained
  let now = "";

  // As `enginehouse stop` does: whoever may ask a model may.
  async function act(fields, done) {
    failure.textContent = "";
    load.disabled = unload.disabled = true;
    const answered = call("api/generate", { body: { model: id, stream: false, ...fields } }).then(good);
    look();
    try {
      await answered;
      say(`${id} is ${done}`);
    } catch (error) {
      failure.textContent = error.message;
    }
    load.disabled = unload.disabled = false;
    look();
  }

  function update(model) {
    const { status } = model;
    now = stateOf(status);
    state.textContent = status.state;
    state.className = `state ${status.state}`;
    about.textContent = [model.source, model.aliases.length ? `also called ${model.aliases.join(", ")}` : ""]
      .filter(Boolean)
      .join(" · ");
    served.textContent = servedBy(status);
    load.hidden = status.state !== "unloaded";
    unload.hidden = status.state !== "loaded";
    showProgress(progress, status);
  }

  async function explain() {
    if (asked.state === now && performance.now() < asked.at + FRESH_MS) return;
    asked = { at: performance.now(), state: now };
    try {
      const explanation = await json(`v1/models/${named(id)}/explain`, { quiet: true });
      reason.textContent = explanation.chosen
        ? `Chosen: ${explanation.chosen}, ${explanation.reason}`
        : explanation.reason;
      why.replaceChildren(...explained(explanation));
    } catch (error) {
      reason.textContent = error.message;
    }
  }
  return { node, update, explain };
}

// What a new explanation may be wanted after.
function stateOf(status) {
  return `${status.state} ${status.runtime ?? ""} ${status.precision ?? ""}`;
}

function servedBy(status) {
  const requests = status.requests ? `${many(status.requests, "request")} under way` : "";
  if (status.state !== "loaded") return requests;
  const where = [status.runtime, status.device, status.precision].filter(Boolean).join(" / ");
  const room = `${number(status.context_length)} tokens of context, ${many(status.slots, "slot")}`;
  return [where, room, status.memory_bytes ? bytes(status.memory_bytes) : "", requests].filter(Boolean).join(" · ");
}

function showProgress(node, status) {
  const under = status.state === "loading" ? status : status.better;
  node.hidden = !under;
  if (!under) {
    node.replaceChildren();
    return;
  }
  const what = status.state === "loading" ? under.stage : `a better one is made: ${under.stage}`;
  const text = `${what}, ${under.percent} %, about ${duration(under.seconds_left)} left`;
  if (!node.firstChild) {
    node.append(element("progress", { max: 100, "aria-label": "How far it is" }), element("span"));
  }
  node.firstChild.value = under.percent;
  node.lastChild.textContent = text;
}
