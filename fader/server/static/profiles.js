// Named alignments, kept in this browser or on the server, and links that hold a whole page.

import { html, signal, useState } from "./vendor/preact.js";
import { call, key } from "./api.js";
import { keep, kept } from "./kept.js";
import { alignmentOf, edit, removeColumn } from "./asking.js";
import { kindsOf, serverProfiles } from "./offers.js";
import { columns, MOST_COLUMNS, newColumn, question, said, sampling, selectedId } from "./state.js";

const own = signal(kept("profiles", {}));

function keepOwn(profiles) {
  keep("profiles", profiles);
  own.value = profiles;
}

const NAME = /^[\p{L}\p{N}_-]+$/u;

export function Profiles({ column }) {
  const [naming, setNaming] = useState(false);
  const [name, setName] = useState("");
  const [fault, setFault] = useState("");
  const load = (choice) => {
    const [where, called] = [choice[0], choice.slice(1)];
    const found =
      where === "b"
        ? own.value[called]
        : serverProfiles.value.find((one) => one.id === called)?.alignment;
    if (!found) return;
    column.name.value = called;
    edit(column, (alignment) => {
      for (const field of Object.keys(alignment)) delete alignment[field];
      Object.assign(alignment, structuredClone(found));
    });
    said.value = `The profile ${called} is loaded.`;
  };
  const done = () => {
    column.name.value = name;
    said.value = `The profile ${name} is saved.`;
    setNaming(false);
    setFault("");
  };
  const save = (event) => {
    event.preventDefault();
    if (!NAME.test(name)) return setFault("Use letters, digits, - and _.");
    keepOwn({ ...own.value, [name]: alignmentOf(column) });
    done();
  };
  const saveThere = async () => {
    if (!NAME.test(name)) return setFault("Use letters, digits, - and _.");
    try {
      const body = { alignment: alignmentOf(column) };
      await call("PUT", `v1/profiles/${encodeURIComponent(name)}`, body);
      serverProfiles.value = (await call("GET", "v1/profiles")).data;
      done();
    } catch (error) {
      setFault(error.message);
    }
  };
  const forget = () => {
    const { [name]: _, ...others } = own.value;
    keepOwn(others);
    setNaming(false);
  };
  const here = Object.keys(own.value);
  return html`<div class="profiles">
    <div class="row">
      <select
        aria-label="Load a profile"
        onChange=${(event) => {
          load(event.currentTarget.value);
          event.currentTarget.value = "";
        }}
      >
        <option value="">Load a profile…</option>
        ${here.length > 0 &&
        html`<optgroup label="In this browser">
          ${here.map((one) => html`<option value=${`b${one}`}>${one}</option>`)}
        </optgroup>`}
        ${serverProfiles.value.length > 0 &&
        html`<optgroup label="On the server">
          ${serverProfiles.value.map((one) => html`<option value=${`s${one.id}`}>${one.id}</option>`)}
        </optgroup>`}
      </select>
      <button
        type="button"
        class="quiet"
        aria-expanded=${naming}
        onClick=${() => {
          setName(NAME.test(column.name.value) ? column.name.value : "");
          setNaming(!naming);
        }}
      >
        Save…
      </button>
      <button
        type="button"
        class="quiet"
        onClick=${() =>
          edit(column, (alignment) => {
            for (const field of Object.keys(alignment)) delete alignment[field];
          })}
      >
        Reset
      </button>
    </div>
    ${naming &&
    html`<form class="naming" onSubmit=${save}>
      <label
        >Name<input
          value=${name}
          autocomplete="off"
          aria-invalid=${fault ? "true" : undefined}
          onInput=${(event) => setName(event.currentTarget.value)}
      /></label>
      <div class="row">
        <button type="submit">Save in this browser</button>
        <button
          type="button"
          disabled=${!key.value}
          title=${key.value ? "" : "Needs the admin key: give it under Key, above"}
          onClick=${saveThere}
        >
          Save on the server
        </button>
        ${name in own.value && html`<button type="button" class="quiet" onClick=${forget}>Delete</button>`}
      </div>
      ${!key.value && html`<p class="hint">Saving on the server needs the admin key.</p>`}
      ${fault && html`<p class="fault" role="alert">${fault}</p>`}
    </form>`}
  </div>`;
}

// A link is the page's state as JSON in base64url. It is read, and nothing of it runs until somebody
// asks.

export function linkOf() {
  const state = {
    question: question.value,
    sampling: sampling.value,
    columns: columns.value
      .slice(1)
      .map((column) => ({ name: column.name.value, alignment: alignmentOf(column) })),
  };
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  const text = btoa(String.fromCharCode(...bytes));
  const hash = text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return new URL(`#${hash}`, location.href).href;
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

const texts = (value) => Array.isArray(value) && value.every((one) => typeof one === "string");
const kinded = (group, list) =>
  Array.isArray(list) && list.every((one) => isObject(one) && kindsOf(group).includes(one.kind));

// Whether an alignment has the form that the desk shows; what is in it the server checks.
function isSound({ vectors = {}, preferences = {}, guides = [], search = null }) {
  return (
    isObject(vectors) &&
    Object.values(vectors).every((strength) => typeof strength === "number") &&
    isObject(preferences) &&
    ["provider", "user", "facts"].every((name) => texts(preferences[name] ?? [])) &&
    kinded("guides", guides) &&
    (search === null || (kinded("search", [search]) && kinded("rewards", search.rewards)))
  );
}

export function readLink(hash) {
  if (hash.length < 2) return false;
  let state;
  try {
    const text = atob(hash.slice(1).replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(text, (one) => one.charCodeAt(0));
    state = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    const sound = (one) => isObject(one) && isObject(one.alignment) && isSound(one.alignment);
    if (!isObject(state) || !Array.isArray(state.columns) || !state.columns.every(sound)) {
      throw new Error("not a page");
    }
  } catch {
    said.value = "This link cannot be read.";
    return false;
  }
  const numbers = Object.entries(isObject(state.sampling) ? state.sampling : {}).filter(
    ([name, value]) => name in sampling.value && typeof value === "number",
  );
  sampling.value = { ...sampling.value, ...Object.fromEntries(numbers) };
  if (typeof state.question === "string") question.value = state.question;
  const found = state.columns
    .slice(0, MOST_COLUMNS - 1)
    .map((one) => newColumn(String(one.name ?? "").slice(0, 60), one.alignment));
  columns.value.slice(1).forEach(removeColumn);
  columns.value = [columns.value[0], ...found];
  selectedId.value = columns.value.at(-1).id;
  return true;
}
