// Series over the last minutes, from the samples that `watch` keeps.

import { house } from "./watch.js";

const SPAN_SECONDS = 10; // that a rate is the mean of: some counters grow only when an answer ends

const LEAST_SECONDS = 1;

// How much a counter grew per second: [{at, value}].
export function rates(what, model) {
  return house.samples.flatMap((sample, place) => {
    const before = earlier(place);
    return before ? [{ at: sample.at, value: grown(what, model, sample, before) / (sample.at - before.at) }] : [];
  });
}

// What one counter grew by for each that another grew by: a mean, where there was any.
export function means(sum, count, model) {
  return house.samples.flatMap((sample, place) => {
    const before = earlier(place);
    const times = before ? grown(count, model, sample, before) : 0;
    return times ? [{ at: sample.at, value: grown(sum, model, sample, before) / times }] : [];
  });
}

export function values(what, model) {
  return house.samples.map((sample) => ({ at: sample.at, value: sample[what]?.[model] ?? 0 }));
}

// Tokens per second of all models together, now.
export function latest() {
  return (house.models ?? []).reduce((sum, { id }) => sum + (rates("tokens", id).at(-1)?.value ?? 0), 0);
}

// A server that was started again counts from nothing.
function grown(what, model, now, before) {
  return Math.max(0, (now[what]?.[model] ?? 0) - (before[what]?.[model] ?? 0));
}

function earlier(place) {
  const since = house.samples[place].at - SPAN_SECONDS;
  const before = house.samples.find((sample) => sample.at >= since);
  return house.samples[place].at - before.at >= LEAST_SECONDS ? before : null;
}
