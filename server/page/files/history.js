// Series over the last minutes, from the samples that `watch` keeps.

import { house } from "./watch.js";

const SPAN_SECONDS = 10; // that a rate is the mean of: answers are counted when they end

// How much a counter grew per second, by model: [{at, value}].
export function rates(what, model) {
  return house.samples.flatMap((sample, place) => {
    const before = earlier(place);
    if (!before) return [];
    const grown = (sample[what][model] ?? 0) - (before[what][model] ?? 0);
    return [{ at: sample.at, value: Math.max(0, grown) / (sample.at - before.at) }];
  });
}

// What one counter grew by for each that another grew by: a mean, where there was any.
export function means(sum, count, model) {
  return house.samples.flatMap((sample, place) => {
    const before = earlier(place);
    if (!before) return [];
    const grown = (sample[count][model] ?? 0) - (before[count][model] ?? 0);
    if (grown <= 0) return [];
    return [{ at: sample.at, value: ((sample[sum][model] ?? 0) - (before[sum][model] ?? 0)) / grown }];
  });
}

export function values(what, model) {
  return house.samples.map((sample) => ({ at: sample.at, value: sample[what][model] ?? 0 }));
}

// Tokens per second of all models together, now.
export function latest() {
  const models = house.models ?? [];
  return models.reduce((sum, { id }) => sum + (rates("tokens", id).at(-1)?.value ?? 0), 0);
}

function earlier(place) {
  const { at } = house.samples[place];
  const within = house.samples.slice(0, place).filter((sample) => sample.at >= at - SPAN_SECONDS);
  return within[0];
}
