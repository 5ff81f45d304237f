// What GET /metrics tells, by model. The names stand here and nowhere else.

export const NAMES = {
  tokens: "vllm:generation_tokens_total",
  firstTokenSum: "vllm:time_to_first_token_seconds_sum",
  firstTokenCount: "vllm:time_to_first_token_seconds_count",
  underWay: "enginehouse_requests_under_way",
};
const MODEL = "model_name";

const FAMILY = /^# TYPE (\S+) /;
const LINE = /^([\w:]+)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// {what: {model: value}} of the text that Prometheus reads; null for what this server does not count.
export function read(exposition) {
  const found = {};
  for (const line of exposition.split("\n")) {
    const [, family] = FAMILY.exec(line) ?? [];
    for (const name of WANTED) if (family && name.startsWith(family)) found[name] ??= {};
    const [, name, text, value] = LINE.exec(line) ?? [];
    if (!name || !WANTED.has(name)) continue;
    const model = labelsOf(text ?? "")[MODEL] ?? "";
    found[name][model] = (found[name][model] ?? 0) + Number(value);
  }
  return Object.fromEntries(Object.entries(NAMES).map(([what, name]) => [what, found[name] ?? null]));
}

const WANTED = new Set(Object.values(NAMES));

function labelsOf(text) {
  return Object.fromEntries([...text.matchAll(LABEL)].map(([, name, value]) => [name, plain(value)]));
}

function plain(escaped) {
  return escaped.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
}
