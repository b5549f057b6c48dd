// Fields, made from the server's own schema: what it takes can be set, and is told in its words.

import { html, useEffect, useId, useRef, useState } from "./vendor/preact.js";
import { refused, resolve, schema, vectors } from "./offers.js";
import { selected } from "./state.js";

// Faults. The server names a field in a union by its kind too, as in `guides[0].contrast.weight`;
// the page's fields leave it out.

export function pathOf(fault) {
  const found = schema.value;
  if (!found) return fault.path ?? "";
  const kinds = new Set(
    Object.values(found.$defs).flatMap((one) => one.properties?.kind?.const ?? []),
  );
  const parts = (fault.path ?? "").split(".");
  return parts
    .filter((part, i) => !(kinds.has(part) && i && /(\]|^search)$/.test(parts[i - 1])))
    .join(".");
}

export const faultsUnder = (path) =>
  selected.value.faults.value.filter((fault) => {
    const at = pathOf(fault);
    return at === path || (at.startsWith(path) && ".[".includes(at[path.length]));
  });

const spoken = (name) => name.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());

// A labelled control. `about` is shown while it is pointed at or focused; faults of its path below.
// `control(props)` gives the control, with what ties label, explanation and fault to it.
export function Field({ label, about, path, control, only = false, why = "" }) {
  const id = useId();
  const faults = path ? faultsUnder(path) : [];
  const told = [about && `${id}-about`, why && `${id}-why`, faults.length && `${id}-fault`];
  const props = {
    id,
    "aria-describedby": told.filter(Boolean).join(" ") || undefined,
    "aria-invalid": faults.length ? "true" : undefined,
    disabled: Boolean(why),
  };
  return html`<div class=${`field ${only ? "check" : ""}`} data-path=${path}>
    <label for=${id}>${label}</label>
    ${control(props)}
    ${about && html`<p class="about" id=${`${id}-about`}>${about}</p>`}
    ${why && html`<p class="why" id=${`${id}-why`}>${why}</p>`}
    ${faults.length > 0 &&
    html`<p class="fault" id=${`${id}-fault`}>${faults.map((one) => one.message).join(" ")}</p>`}
  </div>`;
}

// Faults of a group that belong to none of its fields.
export function GroupFault({ path }) {
  const own = faultsUnder(path).filter((fault) => pathOf(fault) === path);
  return own.length ? html`<p class="fault">${own[0].message}</p>` : null;
}

// A text that is kept as it is typed, and told as `read` understands it.
export function TextBox({ props, value, read, onValue, rows = 1, placeholder }) {
  const [typed, setTyped] = useState(value);
  const last = useRef(value);
  useEffect(() => {
    if (value !== last.current) {
      last.current = value;
      setTyped(value);
    }
  }, [value]);
  const type = (event) => {
    const text = event.currentTarget.value;
    setTyped(text);
    const found = read(text);
    last.current = found.shown;
    onValue(found.value);
  };
  return html`<textarea
    ...${props}
    rows=${rows}
    spellcheck="false"
    placeholder=${placeholder}
    value=${typed}
    onInput=${type}
  ></textarea>`;
}

const asText = (text) => ({ shown: text, value: text === "" ? undefined : text });

export const asLines = (text) => {
  const lines = text.split("\n").map((line) => line.trim());
  const value = lines.filter(Boolean);
  return { shown: value.join("\n"), value: value.length ? value : undefined };
};

const asJson = (text) => {
  try {
    const value = JSON.parse(text);
    return { shown: JSON.stringify(value), value };
  } catch {
    return { shown: text, value: text };
  }
};

export function NumberBox({ props, value, part, onValue, placeholder }) {
  const whole = part.type === "integer";
  return html`<input
    ...${props}
    type="number"
    inputmode="decimal"
    step=${whole ? 1 : "any"}
    min=${part.minimum ?? part.exclusiveMinimum}
    max=${part.maximum}
    placeholder=${placeholder}
    value=${value ?? ""}
    onInput=${({ currentTarget: { value: typed } }) =>
      onValue(typed === "" ? undefined : Number(typed))}
  />`;
}

export function Choice({ props, value, options, onValue }) {
  return html`<select
    ...${props}
    value=${value}
    onChange=${(event) => onValue(event.currentTarget.value)}
  >
    ${options.map((one) => html`<option value=${one} selected=${one === value}>${one}</option>`)}
  </select>`;
}

// What kind of control a part of the schema needs.
function shapeOf(given) {
  let part = resolve(given);
  let nullable = false;
  if (part.anyOf) {
    const { anyOf, ...own } = part;
    const kinds = anyOf.filter((one) => one.type !== "null");
    nullable = kinds.length < anyOf.length;
    part = { ...resolve(kinds[0]), ...own, nullable };
    if (kinds.length > 1) return { ...part, control: "number or word" };
  }
  if (part.enum) return { ...part, control: "choice" };
  if (part.type === "integer" || part.type === "number") return { ...part, control: "number" };
  if (part.type === "boolean") return { ...part, control: "check" };
  if (part.type === "string") return { ...part, control: "text" };
  if (part.type === "array" && resolve(part.items).properties) return { ...part, control: "list" };
  if (part.type === "array") return { ...part, control: "lines" };
  if (part.additionalProperties?.type === "number") return { ...part, control: "mixture" };
  if (part.properties) return { ...part, control: "group" };
  return { ...part, control: "json" };
}

const standard = (part) =>
  part.default === null || part.default === undefined
    ? "none"
    : Array.isArray(part.default)
      ? part.default.join(", ")
      : String(part.default);

// All fields of an object; those that matter most stand first, the others behind "More".
export function Fields({ schema, value, onChange, path, first }) {
  const names = Object.keys(schema.properties).filter((name) => name !== "kind");
  const [begun] = useState(() => Object.keys(value)); // a field stays in its place when it is set
  const wanted = new Set([...(schema.required ?? []), "weight", ...(first ?? begun)]);
  const set = (name, one) => {
    const copy = { ...value };
    if (one === undefined) delete copy[name];
    else copy[name] = one;
    onChange(copy);
  };
  const one = (name) =>
    html`<${One}
      key=${name}
      name=${name}
      given=${schema.properties[name]}
      value=${value[name]}
      onValue=${(found) => set(name, found)}
      path=${`${path}.${name}`}
    />`;
  const more = names.filter((name) => !wanted.has(name));
  const faulty = more.some((name) => faultsUnder(`${path}.${name}`).length);
  return html`<div class="fields">
    <${GroupFault} path=${path} />
    ${names.filter((name) => wanted.has(name)).map(one)}
    ${more.length > 0 &&
    html`<details class="more" open=${faulty}>
      <summary>More settings</summary>
      ${more.map(one)}
    </details>`}
  </div>`;
}

function One({ name, given, value, onValue, path }) {
  const part = shapeOf(given);
  const label = spoken(name);
  const about = part.description?.replaceAll("\n", " ").replaceAll("`", "");
  if (part.control === "group") return html`<${Group} ...${{ part, label, about, value, onValue, path }} />`;
  if (part.control === "list") return html`<${List} ...${{ part, label, about, value, onValue, path }} />`;
  if (part.control === "mixture") {
    return html`<${Mixture} ...${{ name, label, about, value, onValue, path }} />`;
  }
  const control = (props) => {
    const placeholder = standard(part);
    if (part.control === "choice") {
      return html`<${Choice} ...${{ props, value: value ?? part.default, options: part.enum, onValue }} />`;
    }
    if (part.control === "number") {
      return html`<${NumberBox} ...${{ props, value, part, onValue, placeholder }} />`;
    }
    if (part.control === "check") {
      return html`<input
        ...${props}
        type="checkbox"
        checked=${value ?? part.default}
        onChange=${(event) => onValue(event.currentTarget.checked)}
      />`;
    }
    const reads = { text: asText, lines: asLines, json: asJson }[part.control] ?? numberOrWord;
    const shown = value === undefined ? "" : typeof value === "string" ? value : Array.isArray(value)
      ? value.map((line) => (typeof line === "string" ? line : JSON.stringify(line))).join("\n")
      : JSON.stringify(value);
    const rows = part.control === "lines" ? 2 : 1;
    return html`<${TextBox} ...${{ props, value: shown, read: reads, onValue, rows, placeholder }} />`;
  };
  const lines = part.control === "lines" ? " (one a line)" : "";
  return html`<${Field}
    label=${label + lines}
    only=${part.control === "check"}
    ...${{ about, path, control }}
  />`;
}

const numberOrWord = (text) => {
  const word = text.trim();
  const value = word === "" ? undefined : Number.isNaN(Number(word)) ? word : Number(word);
  return { shown: word, value };
};

function Group({ part, label, about, value, onValue, path }) {
  const standardOn = part.default !== null && part.default !== undefined;
  const on = value === undefined ? standardOn : value !== null;
  const switched = (event) => {
    if (event.currentTarget.checked) onValue(standardOn ? undefined : {});
    else onValue(standardOn ? null : undefined);
  };
  return html`<fieldset data-path=${path}>
    <legend>
      ${part.nullable
        ? html`<label><input type="checkbox" checked=${on} onChange=${switched} /> ${label}</label>`
        : label}
    </legend>
    ${about && html`<p class="hint">${about}</p>`}
    ${on &&
    html`<${Fields}
      schema=${part}
      value=${value ?? part.default ?? {}}
      onChange=${onValue}
      path=${path}
      first=${Object.keys(part.properties).slice(0, 3)}
    />`}
  </fieldset>`;
}

function List({ part, label, about, value = [], onValue, path }) {
  const schema = resolve(part.items);
  const put = (i, one) => onValue(value.map((old, j) => (j === i ? one : old)));
  return html`<fieldset data-path=${path}>
    <legend>${label}</legend>
    ${about && html`<p class="hint">${about}</p>`}
    <${GroupFault} path=${path} />
    ${value.map(
      (one, i) =>
        html`<div class="entry" key=${i}>
          <${Fields} schema=${schema} value=${one} onChange=${(found) => put(i, found)} path=${`${path}[${i}]`} />
          <button
            type="button"
            class="quiet"
            onClick=${() => onValue(value.filter((_, j) => j !== i))}
          >
            Remove
          </button>
        </div>`,
    )}
    <button type="button" class="quiet" onClick=${() => onValue([...value, blank(schema)])}>
      Add
    </button>
  </fieldset>`;
}

const blank = (schema) =>
  Object.fromEntries(
    (schema.required ?? []).map((name) => {
      const part = shapeOf(schema.properties[name]);
      return [name, part.control === "number" ? 0 : part.control === "group" ? {} : ""];
    }),
  );

// Names with a number each: vectors and their strengths, or texts and their shares.
function Mixture({ name, label, about, value = {}, onValue, path }) {
  const known = vectors.value.map((one) => one.name).filter((one) => !(one in value));
  const [typed, setTyped] = useState("");
  const add = (one) => one && onValue({ ...value, [one]: 1 });
  const drop = (one) => {
    const { [one]: _, ...others } = value;
    onValue(others);
  };
  return html`<fieldset data-path=${path}>
    <legend>${label}</legend>
    ${about && html`<p class="hint">${about}</p>`}
    <${GroupFault} path=${path} />
    ${Object.entries(value).map(
      ([one, strength]) =>
        html`<div class="row" key=${one}>
          <${Field}
            label=${one}
            path=${`${path}.${one}`}
            control=${(props) =>
              html`<${NumberBox}
                props=${props}
                part=${{}}
                value=${strength}
                onValue=${(found) => onValue({ ...value, [one]: found ?? 0 })}
              />`}
          />
          <button type="button" class="quiet" aria-label=${`Remove ${one}`} onClick=${() => drop(one)}>
            ✕
          </button>
        </div>`,
    )}
    ${name === "vectors"
      ? html`<select
          aria-label="Add a vector"
          value=""
          onChange=${(event) => {
            add(event.currentTarget.value);
            event.currentTarget.value = "";
          }}
        >
          <option value="">Add a vector…</option>
          ${known.map(
            (one) =>
              html`<option value=${one} disabled=${Boolean(refused.value.vectors[one])}>${one}</option>`,
          )}
        </select>`
      : html`<div class="row">
          <input
            aria-label=${`New of ${label}`}
            value=${typed}
            onInput=${(event) => setTyped(event.currentTarget.value)}
          />
          <button
            type="button"
            class="quiet"
            onClick=${() => {
              add(typed.trim());
              setTyped("");
            }}
          >
            Add
          </button>
        </div>`}
  </fieldset>`;
}

// A part of the desk that opens, and opens by itself where a fault is in it.
export function Section({ title, count, path, children, open = false }) {
  const faulty = path && faultsUnder(path).length > 0;
  const opened = useRef(null);
  useEffect(() => {
    if (faulty) opened.current.open = true;
  }, [faulty]);
  return html`<details class="section" open=${open} ref=${opened}>
    <summary>
      <h3>${title}</h3>
      ${count > 0 && html`<span class="count">${count}</span>`}
      ${faulty && html`<span class="count faulty">!</span>`}
    </summary>
    ${children}
  </details>`;
}
