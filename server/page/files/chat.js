// A chat with one model.

import { makeAnswer } from "./answer.js";
import { element, say } from "./element.js";
import { makeModelChoice } from "./model_choice.js";
import { makeSampling } from "./sampling.js";
import { converse, Reply } from "./stream.js";
import { painter } from "./painter.js";
import { makeResults } from "./tool_results.js";

export const TITLE = "Chat";

export function make() {
  const model = makeModelChoice("chat-model", "Model");
  const system = element("textarea", { id: "chat-system", rows: 3 });
  const sampling = makeSampling("chat");
  const log = element("div", { class: "log", role: "log", "aria-label": "Conversation", tabindex: "0" });
  const words = element("textarea", {
    id: "chat-words",
    rows: 3,
    placeholder: "Enter sends, Shift+Enter is a new line, Escape stops",
  });
  const send = element("button", { type: "submit", class: "main" }, "Send");
  const stop = element("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const anew = element("button", { type: "button", class: "quiet", onclick: clear }, "New chat");
  const form = element(
    "form",
    { class: "composer", onsubmit: submit },
    element("label", { class: "unseen", for: "chat-words" }, "Message"),
    words,
    element("div", { class: "actions" }, anew, stop, send),
  );
  const settings = element(
    "aside",
    { class: "settings", "aria-label": "Settings" },
    element(
      "details",
      { open: innerWidth > 800 },
      element("summary", {}, "System prompt, sampling, tools, schema"),
      element("div", { class: "field" }, element("label", { for: "chat-system" }, "system prompt"), system),
      sampling.node,
    ),
  );
  const node = element(
    "div",
    { class: "chat" },
    element("div", { class: "head" }, element("h2", {}, "Chat"), model.node),
    element("div", { class: "talk" }, log, form),
    settings,
  );
  let messages = [];
  let running = null; // what ends the answer under way

  words.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    } else if (event.key === "Escape") running?.abort();
  });

  function submit(event) {
    event.preventDefault();
    const content = words.value.trim();
    if (running || !content) return;
    words.value = "";
    messages.push({ role: "user", content });
    log.append(
      element("article", { class: "turn user", "aria-label": "You" }, element("p", { class: "prose" }, content)),
    );
    answer();
  }

  async function answer() {
    const shown = makeAnswer();
    const turn = element("article", { class: "turn", "aria-label": model.field.value }, shown.node);
    log.append(turn);
    const reply = new Reply();
    const paint = painter(log, () => shown.paint(reply));
    begin();
    try {
      const said = system.value.trim() ? [{ role: "system", content: system.value }] : [];
      const body = { model: model.field.value, ...sampling.fields(), messages: [...said, ...messages] };
      await converse(body, reply, running.signal, paint);
      messages.push(reply.message);
      say(`answered: ${reply.text.slice(0, 500)}`);
      if (reply.calls.length) turn.append(makeResults(reply.calls, goOn));
    } catch (error) {
      reply.note = "";
      const stopped = error.name === "AbortError";
      if (stopped && reply.text) messages.push({ role: "assistant", content: reply.text });
      turn.append(stopped ? element("p", { class: "aside" }, "stopped") : failed(error, turn));
    } finally {
      end();
      paint();
    }
  }

  function failed(error, turn) {
    const again = element("button", { type: "button", onclick: () => (turn.remove(), answer()) }, "Ask again");
    return element("div", { class: "failure", role: "alert" }, element("p", {}, error.message), again);
  }

  // With what the tools gave.
  function goOn(results) {
    if (running) return;
    messages.push(...results);
    answer();
  }

  function begin() {
    running = new AbortController();
    log.setAttribute("aria-busy", "true");
    send.hidden = true;
    stop.hidden = false;
  }

  function end() {
    running = null;
    log.setAttribute("aria-busy", "false");
    const focused = document.activeElement === stop;
    send.hidden = false;
    stop.hidden = true;
    if (focused) words.focus();
  }

  function clear() {
    running?.abort();
    messages = [];
    log.replaceChildren();
    words.focus();
  }
  return { node, update: model.update };
}
