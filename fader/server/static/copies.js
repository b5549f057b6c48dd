// A column's request as a command, a program, or a profile's file.

import { key } from "./api.js";
import { requestOf } from "./asking.js";

const address = (path) => new URL(path, document.baseURI).href;

export function asCurl(request) {
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  const authorized = key.value ? `  -H 'Authorization: Bearer KEY' \\\n` : ""; // not the key itself
  return `curl ${address("v1/chat/completions")} \\
${authorized}  -H 'Content-Type: application/json' \\
  -d '${body}'\n`;
}

const NAMES = new Map([
  [null, "None"],
  [true, "True"],
  [false, "False"],
]);

export function python(value, indent = "") {
  if (NAMES.has(value)) return NAMES.get(value);
  if (typeof value !== "object") return JSON.stringify(value); // texts and numbers are alike
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const inner = `${indent}    `;
  const parts = Array.isArray(value)
    ? value.map((one) => python(one, inner))
    : Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one, inner)}`);
  if (!parts.length) return open + close;
  const line = `${open}${parts.join(", ")}${close}`;
  if (line.length < 70 && !line.includes("\n")) return line;
  return `${open}\n${parts.map((one) => `${inner}${one},\n`).join("")}${indent}${close}`;
}

// What the SDK knows by name, and what goes beside it.
const OWN = ["model", "messages", "temperature", "top_p", "max_tokens", "seed"];

export function asPython(request) {
  const named = OWN.filter((name) => name in request);
  const extra = Object.fromEntries(Object.entries(request).filter(([name]) => !OWN.includes(name)));
  const lines = named.map((name) => `    ${name}=${python(request[name], "    ")},\n`);
  return `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=${key.value ? '"KEY"' : '"none"'})
answer = client.chat.completions.create(
${lines.join("")}    extra_body=${python(extra, "    ")},
)
print(answer.choices[0].message.content)
`;
}

// YAML takes some characters for line ends, or not at all, unless they are escaped.
const quoted = (value) =>
  JSON.stringify(value).replace(
    /[\x7f-\x9f\u2028\u2029\ufeff]/g,
    (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

export function yaml(value, indent = "") {
  if (value === null || typeof value !== "object") return quoted(value);
  const list = Array.isArray(value);
  const parts = list ? value.map((one) => ["-", one]) : Object.entries(value).map(
    ([name, one]) => [`${/^[a-z_]+$/.test(name) && !WORDS.has(name) ? name : quoted(name)}:`, one],
  );
  if (!parts.length) return list ? "[]" : "{}";
  return parts
    .map(([head, one]) => {
      const deep = one !== null && typeof one === "object" && Object.keys(one).length > 0;
      if (!deep) return `${indent}${head} ${yaml(one)}`;
      const inner = yaml(one, `${indent}  `);
      return list ? `${indent}${head} ${inner.trimStart()}` : `${indent}${head}\n${inner}`;
    })
    .join("\n");
}
// YAML would read these as other than texts
const WORDS = new Set(["true", "false", "yes", "no", "on", "off", "null", "y", "n"]);

export const asYaml = (request) =>
  `# save as .fader/profiles/NAME.yaml, or give it to --align\n${yaml(request.alignment)}\n`;

export const FORMS = { curl: asCurl, Python: asPython, YAML: asYaml };

export const copiesOf = (column) => {
  const request = requestOf(column);
  return Object.fromEntries(Object.entries(FORMS).map(([name, form]) => [name, form(request)]));
};
