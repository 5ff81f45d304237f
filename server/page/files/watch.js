// What the server says of itself, asked again every two seconds, and the last minutes of its counters.

import { json, text } from "./api.js";
import { read } from "./metrics.js";

const PAUSE_MS = 2000;
const SLOW_MS = 60_000;
export const KEPT_SECONDS = 300;

export const house = {
  models: null, // as GET /v1/models lists them
  host: null, // as GET /v1/host says
  version: "",
  health: null,
  samples: [], // of counters, the oldest first: {at: seconds, ...what `read` gives}
  trouble: "", // why nothing can be heard of the server
};
const listeners = new Set();
let learnt = -Infinity;

// Calls back now and whenever something was heard, until the function that it returns is called.
export function watch(listener) {
  listeners.add(listener);
  if (house.models) listener();
  return () => listeners.delete(listener);
}

export async function start() {
  for (;;) {
    await look();
    await new Promise((go) => setTimeout(go, PAUSE_MS));
  }
}

export async function look() {
  try {
    const [models, counters, health] = await Promise.all([
      json("v1/models", { quiet: true }),
      text("metrics", { quiet: true }),
      wellness(),
    ]);
    house.models = models.data;
    house.health = health;
    keep(read(counters));
    house.trouble = "";
  } catch (error) {
    house.trouble = error.message;
  }
  tell();
  if (!house.trouble && performance.now() > learnt + SLOW_MS) await learn();
}

// What seldom changes, and takes the server a second the first time.
async function learn() {
  try {
    house.host = await json("v1/host", { quiet: true });
    house.version = (await json("version", { quiet: true })).version;
    learnt = performance.now();
  } catch (error) {
    house.trouble = error.message;
  }
  tell();
}

function tell() {
  for (const listener of [...listeners]) listener();
}

// What is wrong with its config, or why it takes no request; "" where all is well.
async function wellness() {
  try {
    const said = await json("health", { quiet: true });
    if (said.config) return `The config was changed and not taken: ${said.config}`;
    await json("ready", { quiet: true });
    return "";
  } catch (error) {
    return error.message;
  }
}

function keep(counters) {
  const at = performance.now() / 1000;
  house.samples.push({ at, ...counters });
  house.samples = house.samples.filter((sample) => sample.at > at - KEPT_SECONDS);
}
