// What GET /metrics tells, by model. The names stand here and nowhere else.

export const NAMES = {
  tokens: "enginehouse_completion_tokens_total",
  underWay: "enginehouse_requests_under_way",
};

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// {what: {model: value}} of the text that Prometheus reads.
export function read(exposition) {
  const wanted = Object.fromEntries(Object.entries(NAMES).map(([what, name]) => [name, what]));
  const found = Object.fromEntries(Object.keys(NAMES).map((what) => [what, {}]));
  for (const line of exposition.split("\n")) {
    const [, name, labels, value] = LINE.exec(line) ?? [];
    if (!(name in wanted)) continue;
    const model = labelsOf(labels ?? "").model ?? "";
    found[wanted[name]][model] = (found[wanted[name]][model] ?? 0) + Number(value);
  }
  return found;
}

function labelsOf(text) {
  return Object.fromEntries([...text.matchAll(LABEL)].map(([, name, value]) => [name, plain(value)]));
}

function plain(escaped) {
  return escaped.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
}
