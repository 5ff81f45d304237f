// The same question to two models, side by side: what they say, how quick, and how near each is to its source.

import { json, named } from "./api.js";
import { makeAnswer } from "./answer.js";
import { element, say, table } from "./element.js";
import { makeModelChoice } from "./model_choice.js";
import { painter } from "./painter.js";
import { makeSampling } from "./sampling.js";
import { converse, Reply } from "./stream.js";
import { number, percent, rate, seconds } from "./units.js";

export const TITLE = "Compare";
const HINT =
  "An engine or a precision is pinned in the config: two models of one source, each with its runtime and precision, are two engines side by side.";

export function make() {
  const sides = [makeSide("left", "First", 0), makeSide("right", "Second", 1)];
  const question = element("textarea", { id: "compare-question", rows: 3 });
  const sampling = makeSampling("compare", { withTools: false });
  const together = element("input", { type: "checkbox", id: "compare-together" });
  const ask = element("button", { type: "submit", class: "main" }, "Ask both");
  const stop = element("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const failure = element("p", { class: "failure", role: "alert" });
  const figures = element("div");
  const form = element(
    "form",
    { onsubmit: submit },
    element("div", { class: "field" }, element("label", { for: "compare-question" }, "Question"), question),
    element("details", {}, element("summary", {}, "Sampling"), sampling.node),
    element(
      "div",
      { class: "actions" },
      element("label", { class: "check" }, together, "both at once (they slow each other down)"),
      stop,
      ask,
    ),
    failure,
  );
  const node = element(
    "div",
    {},
    element("h2", {}, "Compare"),
    element("p", { class: "aside" }, HINT),
    form,
    figures,
    element("div", { class: "sides" }, ...sides.map((side) => side.node)),
  );
  let running = null;

  async function submit(event) {
    event.preventDefault();
    if (running || !question.value.trim()) return;
    failure.textContent = "";
    running = new AbortController();
    ask.hidden = true;
    stop.hidden = false;
    figures.replaceChildren();
    for (const side of sides) side.clear();
    try {
      const body = { ...sampling.fields(), messages: [{ role: "user", content: question.value }] };
      const { signal } = running;
      if (together.checked) await Promise.all(sides.map((side) => side.ask(body, signal)));
      else for (const side of sides) if (!signal.aborted) await side.ask(body, signal);
      if (signal.aborted) return;
      figures.replaceChildren(await compared());
      say("both have answered");
    } catch (error) {
      failure.textContent = error.message;
    } finally {
      running = null;
      ask.hidden = false;
      stop.hidden = true;
    }
  }

  async function compared() {
    const columns = await Promise.all(sides.map((side) => side.figures()));
    const rows = Object.keys(columns[0]).map((name) => [name, ...columns.map((column) => column[name])]);
    return table("Both in figures", ["", ...sides.map((side) => side.name)], rows);
  }
  return { node, update: () => sides.forEach((side) => side.update()) };
}

function makeSide(id, label, place) {
  const model = makeModelChoice(`compare-${id}`, label, place);
  const shown = element("div", { class: "answers", tabindex: "0", role: "region", "aria-label": `${label} answer` });
  const node = element("section", { class: "side", "aria-label": label }, model.node, shown);
  let reply = new Reply();
  let asked = "";

  function clear() {
    shown.replaceChildren();
    reply = new Reply();
    asked = model.field.value;
  }

  async function ask(body, signal) {
    const answer = makeAnswer();
    shown.append(answer.node);
    reply = new Reply();
    const paint = painter(shown, () => answer.paint(reply));
    try {
      await converse({ ...body, model: asked }, reply, signal, paint);
    } catch (error) {
      reply.note = "";
      const stopped = error.name === "AbortError";
      shown.append(
        element(
          "p",
          stopped ? { class: "aside" } : { class: "failure", role: "alert" },
          stopped ? "stopped" : error.message,
        ),
      );
    }
    paint();
  }

  async function figures() {
    const { runtime, device, precision } = reply.served;
    const quality = runtime ? await qualityOf(asked, [runtime, device, precision].join("/")) : null;
    return {
      "served by": runtime ? [runtime, device, precision].join(" / ") : "",
      "first token": reply.first ? seconds(reply.firstSeconds) : "",
      speed: reply.rate ? rate(reply.rate) : "too few tokens to tell",
      tokens: reply.usage ? number(reply.usage.completion_tokens) : "",
      "divergence from its source": quality ? quality.divergence.toFixed(4) : "not measured",
      "agreement with its source": quality ? percent(quality.agreement) : "not measured",
    };
  }
  return {
    node,
    clear,
    ask,
    figures,
    update: model.update,
    get name() {
      return asked;
    },
  };
}

async function qualityOf(model, key) {
  const { candidates } = await json(`v1/models/${named(model)}/explain`);
  return candidates.find((one) => one.key === key)?.quality;
}
