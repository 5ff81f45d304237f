// Which engine serves a model and why, with every number it was decided by.

import { element, facts, table } from "./element.js";
import { bytes, percent, seconds } from "./units.js";

export function explained(explanation) {
  const { candidates, rejected, upstream } = explanation;
  return [
    facts([
      ["source", explanation.source],
      ["the least of", explanation.objective],
      ["kind of host", explanation.host.kind],
    ]),
    ...(candidates.length > 0 ? candidatesTable(candidates) : []),
    rejected.length > 0 && table("Not these", ["not these", "device", "why"], rejected.map(refusal)),
    upstream && table("Upstream", ["server", "our requests there", ""], upstream.replicas.map(replica)),
  ].filter(Boolean);
}

const HEADS = [
  "candidate",
  "alone, tok/s",
  "crowd, tok/s",
  "prompt, tok/s",
  "first token",
  "load",
  "memory",
  "cost",
  "divergence",
  "agreement",
  "reason",
];

// Without the columns that nobody has a figure for.
function candidatesTable(candidates) {
  const rows = candidates.map(row);
  const told = HEADS.map((_, column) => rows.some((cells) => cells[column] !== ""));
  const kept = (cells) => cells.filter((_, column) => told[column]);
  const unmeasured = element("p", { class: "aside" }, "Nothing is measured here yet: enginehouse bench does so.");
  return [
    table("Candidates, the best first", kept(HEADS), rows.map(kept)),
    ...(candidates.some(({ figures }) => figures) ? [] : [unmeasured]),
  ];
}

function row({ key, figures, cost, quality, reason }) {
  const measured = figures
    ? [
        figures.decode.toFixed(1),
        figures.decode_crowd.toFixed(1),
        figures.prefill.toFixed(0),
        seconds(figures.first_token_seconds),
        seconds(figures.load_seconds),
        bytes(figures.memory_bytes),
        cost === null ? "" : cost.toFixed(2),
      ]
    : ["", "", "", "", "", "", ""];
  const judged = quality ? [quality.divergence.toFixed(4), percent(quality.agreement)] : ["", ""];
  return [key, ...measured, ...judged, element("span", { class: "reason line" }, reason)];
}

function refusal({ runtime, device, reason }) {
  return [runtime, device, element("span", { class: "reason" }, reason)];
}

function replica({ url, requests, failure }) {
  return [url, String(requests), failure || "answers"];
}
