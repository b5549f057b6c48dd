// The mixing desk of one column: vectors, preferences, guides, search, and what is sampled.

import { html } from "./vendor/preact.js";
import { edit, editSampling } from "./asking.js";
import { Guides, Search } from "./entries.js";
import { asLines, Choice, Field, GroupFault, NumberBox, Section, TextBox } from "./form.js";
import { refused, schema } from "./offers.js";
import { Profiles } from "./profiles.js";
import { Vectors } from "./sliders.js";
import { answersAgain, isBase, letterOf, sampling, seedLocked, selected } from "./state.js";

function Lines({ column, name, label, about, placeholder }) {
  const value = (column.alignment.value.preferences?.[name] ?? []).join("\n");
  const set = (lines) =>
    edit(column, (alignment) => {
      const { [name]: _, ...others } = alignment.preferences ?? {};
      alignment.preferences = lines ? { ...others, [name]: lines } : others;
    });
  return html`<${Field}
    label=${label}
    about=${about}
    path=${`alignment.preferences.${name}`}
    why=${refused.value.preferences}
    control=${(props) =>
      html`<${TextBox}
        key=${column.id}
        props=${props}
        value=${value}
        read=${asLines}
        rows=${2}
        placeholder=${placeholder}
        onValue=${set}
      />`}
  />`;
}

function Preferences({ column }) {
  const said = column.alignment.value.preferences ?? {};
  const count = ["provider", "user", "facts"].reduce((sum, n) => sum + (said[n]?.length ?? 0), 0);
  const rendering = schema.value.$defs.Preferences.properties.rendering;
  return html`<${Section} title="Preferences" count=${count} path="alignment.preferences">
    <p class="hint">What the model is told before it answers, one a line.</p>
    <${Lines}
      column=${column}
      name="provider"
      label="The provider's rules"
      about="Guidelines of whoever offers the model. They win over the user's."
      placeholder="Never give medical doses."
    />
    <${Lines}
      column=${column}
      name="user"
      label="The user's wishes"
      about="What the person who asks would like."
      placeholder="Answer in two sentences."
    />
    <${Lines}
      column=${column}
      name="facts"
      label="About the user"
      about="Facts from which wishes are to be inferred."
      placeholder="I am ten years old."
    />
    <${Field}
      label="How it is said"
      about=${rendering.description?.replaceAll("`", "")}
      path="alignment.preferences.rendering"
      control=${(props) =>
        html`<${Choice}
          props=${props}
          value=${said.rendering ?? rendering.default}
          options=${rendering.enum}
          onValue=${(one) =>
            edit(column, (alignment) => {
              alignment.preferences = { ...alignment.preferences, rendering: one };
            })}
        />`}
    />
  <//>`;
}

const SAMPLED = [
  ["temperature", "Temperature", "0 takes the likeliest token each time; 1 draws as the model says.", "number"],
  ["top_p", "Top p", "Draws among the fewest tokens that hold this much probability.", "number"],
  ["top_k", "Top k", "Draws among this many likeliest tokens.", "integer"],
  ["max_tokens", "Tokens at most", "An answer ends after so many tokens.", "integer"],
  [
    "repetition_penalty",
    "Repetition penalty",
    "Makes tokens that were read or written already less likely; 1 is off.",
    "number",
  ],
];

function Sampling() {
  return html`<${Section} title="Sampling">
    <p class="hint">The same for all columns, so that they differ by their alignment alone.</p>
    <div class="pairs">
      ${SAMPLED.map(
        ([name, label, about, type]) =>
          html`<${Field}
            key=${name}
            label=${label}
            about=${about}
            path=${name}
            control=${(props) =>
              html`<${NumberBox}
                props=${props}
                part=${{ type }}
                value=${sampling.value[name]}
                placeholder="none"
                onValue=${(found) => editSampling(name, found ?? null)}
              />`}
          />`,
      )}
      <${Field}
        label="Seed"
        about="The same seed gives the same answer, whatever else runs."
        path="seed"
        control=${(props) =>
          html`<span class="row"
            ><${NumberBox}
              props=${props}
              part=${{ type: "integer" }}
              value=${sampling.value.seed}
              onValue=${(found) => editSampling("seed", found ?? null)}
            /><button
              type="button"
              class="quiet"
              aria-pressed=${seedLocked.value}
              title=${seedLocked.value
                ? "Locked: the seed stays as it is"
                : "Open: another seed each time"}
              onClick=${() => (seedLocked.value = !seedLocked.value)}
            >
              <span aria-hidden="true">${seedLocked.value ? "🔒" : "🎲"}</span>
              <span class="unseen">Lock the seed</span>
            </button></span
          >`}
      />
    </div>
    <${Field}
      label="Answer again when something changes"
      only=${true}
      control=${(props) =>
        html`<input
          ...${props}
          type="checkbox"
          checked=${answersAgain.value}
          onChange=${(event) => (answersAgain.value = event.currentTarget.checked)}
        />`}
    />
  <//>`;
}

export function Mixer() {
  const column = selected.value;
  return html`<aside class="mixer" aria-label="Mixing desk">
    <div class="mixer-head">
      <h2><span class=${`letter of-${letterOf(column)}`}>${letterOf(column)}</span>${column.name}</h2>
      ${column.rows.value > 1 &&
      html`<span class="hint" title="Rows of the batch at one time">${column.rows.value} rows</span>`}
    </div>
    ${isBase(column)
      ? html`<p class="hint">
          This column is the model as it is. It stays so: the others are compared with it.
        </p>`
      : html`<${Profiles} column=${column} />
          <${GroupFault} path="alignment" />
          <${Vectors} column=${column} />
          <${Preferences} column=${column} />
          <${Guides} column=${column} />
          <${Search} column=${column} />`}
    <${Sampling} />
  </aside>`;
}
