// How a text is drawn: the fields under the fold. An empty one leaves it to the model.
import { html } from "../lib/html.js";
import { integer } from "../lib/api.js";

export const FIELDS = [
  { name: "max_tokens", label: "Longest answer", unit: "tokens", min: 1, max: 131072, whole: true },
  { name: "temperature", label: "Temperature", min: 0, max: 10, step: 0.1 },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.05 },
  { name: "top_k", label: "Top k", min: 0, max: 1000000, whole: true },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.05 },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.1, max: 10, step: 0.05 },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 63, whole: true },
];

const most = (field, model) =>
  field.name === "max_tokens" && model ? model.max_output_tokens : field.max;

/** What is wrong with the fields, or null. */
export function fault(values, model) {
  for (const field of FIELDS) {
    const value = values[field.name]?.trim();
    if (!value) continue;
    const number = Number(value);
    const max = most(field, model);
    if (!Number.isFinite(number)) return `${field.label} is not a number`;
    if (field.whole && !/^\d+$/.test(value)) return `${field.label} has to be a whole number`;
    if (number < field.min || number > max) {
      return `${field.label} has to be between ${field.min} and ${max}`;
    }
  }
  return null;
}

/** The fields of the request. */
export function chosen(values) {
  const given = FIELDS.filter((field) => values[field.name]?.trim());
  return Object.fromEntries(
    given.map(({ name, whole }) => [
      name,
      whole ? integer(values[name].trim()) : Number(values[name]),
    ]),
  );
}

export function Sampling({ values, onChange, model }) {
  const defaults = model?.sampling ?? {};
  return html`
    <div class="fields">
      ${FIELDS.map((field) => {
        const usual = field.name === "seed" ? "by the job" : defaults[field.name];
        return html`
          <label class="field" key=${field.name}>
            <span>${field.label}</span>
            <input
              name=${field.name}
              inputmode="decimal"
              autocomplete="off"
              placeholder=${usual ?? ""}
              value=${values[field.name] ?? ""}
              onInput=${(event) => onChange({ ...values, [field.name]: event.target.value })}
            />
          </label>
        `;
      })}
    </div>
    <p class="hint">Empty fields take the model's own values, which they show.</p>
  `;
}
