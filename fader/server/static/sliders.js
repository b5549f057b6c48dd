// A slider for each vector, with what was measured of it.

import { html } from "./vendor/preact.js";
import { edit } from "./asking.js";
import { Field, Section } from "./form.js";
import { refused, vectors } from "./offers.js";
import { RANGE } from "./state.js";

const LEVELS = ["avoidance", "generic", "expert"];
const percent = (share) => `${Math.round(share * 100)}%`;

// What was measured of a vector, in words.
function effectOf(card) {
  const effect = card?.effect;
  if (!effect?.strengths?.length) return "Nothing was measured of this vector.";
  const rows = effect.strengths.map((one) => {
    const levels = LEVELS.filter((level) => one[level] > 0.005);
    const told = levels.length
      ? levels.map((level) => `${level} ${percent(one[level])}`).join(", ")
      : percent(one.chosen);
    return `${String(one.strength).replace("-", "−")}: ${told}`;
  });
  const what = LEVELS.some((level) => level in effect.strengths[0])
    ? "which level of answer the model prefers"
    : "how often the model prefers the answer of this kind";
  const told = `Measured on ${effect.items} held-out questions, ${what}:`;
  return [told, ...rows, card.caution].filter(Boolean).join("\n");
}

// A fader is filled from its middle, where it is off.
const filled = (value) => {
  const at = 50 + (50 * Math.max(-RANGE, Math.min(RANGE, value))) / RANGE;
  return { "--from": `${Math.min(at, 50)}%`, "--to": `${Math.max(at, 50)}%` };
};

function Slider({ column, vector }) {
  const { name, card } = vector;
  const path = `alignment.vectors.${name}`;
  const value = column.alignment.value.vectors?.[name] ?? 0;
  const set = (strength) =>
    edit(column, (alignment) => {
      alignment.vectors = { ...alignment.vectors, [name]: strength };
    });
  const slide = (event) => {
    const strength = Number(event.currentTarget.value);
    set(Math.abs(strength) < 0.04 ? 0 : strength); // zero is easy to hit
  };
  return html`<div class=${`slider ${value ? "on" : ""}`}>
    <${Field}
      label=${name}
      path=${path}
      about=${effectOf(card)}
      why=${refused.value.vectors[name]}
      control=${(props) =>
        html`<input
            ...${props}
            type="range"
            min=${-RANGE}
            max=${RANGE}
            step="0.05"
            value=${value}
            style=${filled(value)}
            title="Double click: back to 0"
            onInput=${slide}
            onDblClick=${() => set(0)}
            onKeyDown=${(event) => event.key === "Escape" && set(0)}
          /><output for=${props.id}>${value > 0 ? "+" : ""}${value.toFixed(2)}</output>`}
    />
  </div>`;
}

export function Vectors({ column }) {
  const mixed = Object.values(column.alignment.value.vectors ?? {}).filter(Boolean).length;
  const known = new Set(vectors.value.map((one) => one.name));
  // a link or profile may name vectors that are not here: they are shown, with the server's fault
  const unknown = Object.keys(column.alignment.value.vectors ?? {})
    .filter((name) => !known.has(name))
    .map((name) => ({ name, card: null }));
  const fits = ({ name }) => !refused.value.vectors[name];
  const fitting = vectors.value.filter(fits);
  const others = vectors.value.filter((vector) => !fits(vector));
  const slider = (vector) =>
    html`<${Slider} key=${vector.name} column=${column} vector=${vector} />`;
  return html`<${Section} title="Vectors" count=${mixed} path="alignment.vectors" open=${true}>
    <p class="hint">
      Each moves the manner of the answer one way, or the other. Double click: back to 0.
    </p>
    ${vectors.value.length === 0 &&
    html`<p class="hint">This server has no vectors. <code>fader train vector</code> makes them.</p>`}
    ${[...fitting, ...unknown].map(slider)}
    ${others.length > 0 &&
    html`<details class="more">
      <summary>${others.length} that do not fit this model</summary>
      ${others.map(slider)}
    </details>`}
  <//>`;
}
