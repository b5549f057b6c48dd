// One question over a slider's range: a row of answers, and a curve of what is measured along it.

import { computed, html, signal, useEffect, useRef } from "./vendor/preact.js";
import uPlot from "./vendor/uplot.js";
import { Pieces, textOf } from "./tokens.js";
import { alignmentOf, read, requestOf } from "./asking.js";
import { Field } from "./form.js";
import { example, kindsOf, refused, vectors } from "./offers.js";
import { dark, letterOf, question, RANGE, said, sampling, selected, theme } from "./state.js";

const vector = signal("");
const width = signal("1");
const steps = signal("5");
const measure = signal("words");
const answers = signal([]);
const swept = signal("");
let abort = null;
export const sweeping = computed(() => answers.value.some((one) => one.status === "running"));

const signed = (strength) => `${strength > 0 ? "+" : ""}${strength}`.replace("-", "−");
const words = (text) => (text.match(/[\p{L}\p{N}'’]+/gu) ?? []).length;

const strengths = () => {
  const [far, count] = [Number(width.value), Number(steps.value)];
  return Array.from({ length: count }, (_, i) => {
    const strength = -far + (2 * far * i) / (count - 1);
    return Math.round(strength * 100) / 100;
  });
};

const usable = () => vectors.value.filter((one) => !refused.value.vectors[one.name]);
const current = () => usable().find((one) => one.name === vector.value) ?? usable()[0];

function bodyAt(column, name, strength) {
  const alignment = structuredClone(alignmentOf(column));
  alignment.vectors = { ...alignment.vectors, [name]: strength };
  // a search that draws once keeps what it drew, and reports its reward
  if (measure.value !== "words" && !alignment.search) {
    alignment.search = { kind: "best-of-n", n: 1, rewards: [example(measure.value)] };
  }
  const request = { ...requestOf(column, alignment), stream: true };
  return { ...request, stream_options: { include_usage: true } };
}

async function sweep() {
  abort?.abort();
  const own = (abort = new AbortController());
  const [column, name] = [selected.value, current().name];
  swept.value = name;
  answers.value = strengths().map((strength) => ({ strength, text: "", status: "running" }));
  said.value = `The sweep over ${name} runs.`;
  await Promise.all(
    answers.value.map(async ({ strength }, i) => {
      const put = (more) => {
        if (abort !== own) return;
        answers.value = answers.value.map((one, j) => (j === i ? { ...one, ...more } : one));
      };
      try {
        await read(bodyAt(column, name, strength), new Pieces(), ({ pieces, usage, status }) => {
          if (pieces) put({ text: textOf(pieces) });
          if (usage) put({ reward: usage.alignment.rewards[0] ?? null });
          if (status) put({ status });
        }, own.signal);
      } catch (error) {
        const stopped = error.name === "AbortError";
        put({ status: stopped ? "stopped" : "failed", message: error.message });
      }
    }),
  );
  if (abort === own) said.value = "The sweep has ended.";
}

const valueOf = (one) =>
  one.status !== "done" ? null : measure.value === "words" ? words(one.text) : (one.reward ?? null);

const measuredOf = (answer) => {
  const value = Math.round(valueOf(answer) * 100) / 100;
  return measure.value === "words" ? `${value} words` : `${measure.value}: ${value}`;
};

const COLOURS = ["--teal", "--violet", "--amber"];
const LEVELS = ["avoidance", "generic", "expert"];

// What the vector's card says of each strength, as lines {name, points}.
function measured(card) {
  const rows = card?.effect?.strengths ?? [];
  const names = rows.length && LEVELS.some((level) => level in rows[0]) ? LEVELS : ["chosen"];
  return names
    .map((name) => ({
      name: name === "chosen" ? "preferred" : name,
      points: new Map(rows.filter((row) => name in row).map((row) => [row.strength, row[name]])),
    }))
    .filter((line) => line.points.size);
}

function Curve({ title, lines, unit, top }) {
  const place = useRef(null);
  const at = [...new Set(lines.flatMap((line) => [...line.points.keys()]))].sort((a, b) => a - b);
  const data = [at, ...lines.map((line) => at.map((x) => line.points.get(x) ?? null))];
  const told = lines
    .map((line) => `${line.name}: ${[...line.points].map(([x, y]) => `${y} at ${x}`).join(", ")}`)
    .join("; ");
  useEffect(() => {
    if (!at.length) return undefined;
    const colour = (name) => {
      place.current.style.color = `var(${name})`; // a canvas needs it worked out
      return getComputedStyle(place.current).color;
    };
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const plot = new uPlot(
      {
        width: place.current.clientWidth,
        height: 180,
        legend: { show: lines.length > 1, live: false },
        cursor: { show: false },
        scales: { x: { time: false, range: [-RANGE, RANGE] }, y: { range: (u, low, high) => [0, top ?? Math.max(1, high * 1.1)] } },
        axes: [{ ...axis, incrs: [0.5], values: (u, marks) => marks.map((x) => x.toFixed(1)) }, axis],
        series: [
          {},
          ...lines.map((line, i) => ({
            label: line.name,
            stroke: colour(COLOURS[i]),
            width: 2,
            spanGaps: true,
            points: { show: true, size: 7, fill: colour(COLOURS[i]) },
          })),
        ],
      },
      data,
      place.current,
    );
    const watch = new ResizeObserver(() =>
      plot.setSize({ width: place.current?.clientWidth ?? 300, height: 180 }),
    );
    watch.observe(place.current);
    return () => {
      watch.disconnect();
      plot.destroy();
    };
  }, [JSON.stringify(data), theme.value, dark.value]);
  return html`<figure class="curve">
    <figcaption>${title}${unit && html` <span class="hint">${unit}</span>`}</figcaption>
    <div ref=${place} role="img" aria-label=${`${title}. ${told}`}></div>
  </figure>`;
}

const choice = (label, value, onValue, options, about) =>
  html`<${Field}
    label=${label}
    about=${about}
    control=${(props) =>
      html`<select
        ...${props}
        value=${value}
        onChange=${(event) => onValue(event.currentTarget.value)}
      >
        ${options.map(
          ([key, text, why]) =>
            html`<option value=${key} selected=${key === value} disabled=${Boolean(why)} title=${why}>
              ${text}
            </option>`,
        )}
      </select>`}
  />`;

export function Sweep() {
  const one = current();
  if (!one) return html`<p class="empty">This server has no vector that can be swept.</p>`;
  const greedy = sampling.value.temperature ? "" : "needs a temperature above 0";
  const searched = selected.value.alignment.value.search;
  const measures = searched
    ? [["words", "words"], ["search", "the search's reward"]]
    : [
        ["words", "words"],
        ...kindsOf("rewards").map((kind) => [kind, kind, refused.value.rewards[kind] ?? greedy]),
      ];
  const points = new Map(answers.value.map((answer) => [answer.strength, valueOf(answer)]));
  for (const [x, y] of points) if (y === null) points.delete(x);
  const card = measured(one.card);
  return html`<section class="sweep" aria-label="Sweep">
    <p class="hint">
      The question is answered at several strengths of one vector, all in one batch, beside what
      else column ${letterOf(selected.value)} is mixed of.
    </p>
    <form
      class="row wrap"
      onSubmit=${(event) => {
        event.preventDefault();
        sweep();
      }}
    >
      ${choice(
        "Vector",
        one.name,
        (name) => (vector.value = name),
        usable().map(({ name }) => [name, name]),
      )}
      ${choice("Range", width.value, (far) => (width.value = far), [
        ["0.5", "−0.5 … 0.5"],
        ["1", "−1 … 1"],
        ["1.5", "−1.5 … 1.5"],
      ])}
      ${choice("Steps", steps.value, (count) => (steps.value = count), [
        ["3", "3"],
        ["5", "5"],
        ["6", "6"],
      ])}
      ${choice(
        "Measured",
        measure.value,
        (kind) => (measure.value = kind),
        measures,
        "What the curve of the answers shows.",
      )}
      <button type="submit" class="strong" disabled=${!question.value.trim()}>Sweep</button>
      ${sweeping.value && html`<button type="button" onClick=${() => abort?.abort()}>Stop</button>`}
    </form>
    <div class="curves">
      ${points.size > 0 &&
      html`<${Curve}
        title=${`These answers: ${measure.value === "words" ? "length" : "reward"}`}
        unit=${measure.value === "words" ? "words" : measure.value}
        lines=${[{ name: measure.value, points }]}
      />`}
      ${card.length > 0 &&
      html`<${Curve}
        title=${`${one.name}, as measured`}
        unit="share of held-out questions"
        lines=${card}
        top=${1}
      />`}
    </div>
    ${answers.value.length > 0 &&
    html`<div class="strip" role="group" tabindex="0" aria-label="Answers at each strength">
      ${answers.value.map(
        (answer) =>
          html`<article class="column" key=${answer.strength} aria-label=${`${swept.value} at ${answer.strength}`}>
            <header>
              <h2>${swept.value} ${signed(answer.strength)}</h2>
            </header>
            <p class="answer">${answer.text}${answer.status === "running" && html`<span class="caret"></span>`}</p>
            ${answer.message && answer.status === "failed" && html`<p class="fault" role="alert">${answer.message}</p>`}
            ${answer.status === "stopped" && html`<p class="hint">Stopped.</p>`}
            <p class="hint">${valueOf(answer) !== null && measuredOf(answer)}</p>
          </article>`,
      )}
    </div>`}
  </section>`;
}
