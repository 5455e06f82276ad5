// The text box and what stands around it.
import { html, useRef, useState } from "../lib/html.js";
import { call } from "../lib/api.js";
import { go } from "../lib/route.js";
import { remember } from "./asked.js";
import { otherThanEnglish } from "./language.js";
import { Sampling, chosen, fault } from "./sampling.js";

// What the API takes in one prompt, and in one value of a job's metadata.
const MAX_CHARS = 1_000_000;
const MAX_NOTE_CHARS = 500;

const EXAMPLES = [
  "Why is the sea salty?",
  "What is the sum of the first 100 whole numbers? Show the steps.",
  "Write a Python function that checks whether a word is a palindrome.",
  "Explain photosynthesis to a ten-year-old.",
];

export function Composer({ models, keyMissing, first }) {
  const [text, setText] = useState("");
  const [name, setName] = useState(null);
  const [role, setRole] = useState(null); // null: the model's own
  const [sampling, setSampling] = useState({});
  const [sending, setSending] = useState(false);
  const [problem, setProblem] = useState(null);
  const box = useRef(null);

  const model = models?.find((one) => one.id === name) ?? models?.[0] ?? null;
  const reason = whyNot({ text, models, model, sampling, keyMissing, sending });
  const other = model?.languages.includes("en") ? otherThanEnglish(text) : null;

  async function ask() {
    if (reason) return box.current?.focus();
    setSending(true);
    setProblem(null);
    try {
      const body = {
        ...(model.chat ? {} : { raw: true }),
        model: model.id,
        prompt: text,
        ...(role === null || role === model.system_prompt ? {} : { system: role }),
        ...chosen(sampling),
        priority: "interactive",
        metadata: { question: text.slice(0, MAX_NOTE_CHARS) },
      };
      const { id } = await call("POST", "v1/jobs", {
        body,
        headers: { "Idempotency-Key": crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` },
      });
      remember({ id, question: text.slice(0, 4000), model: model.id, at: Date.now() });
      setText("");
      go("ask", id);
    } catch (error) {
      setProblem(error);
    } finally {
      setSending(false);
    }
  }

  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  };

  return html`
    <form
      class="composer"
      onSubmit=${(event) => {
        event.preventDefault();
        ask();
      }}
    >
      <label class="unseen" for="question">Your question</label>
      <textarea
        id="question"
        ref=${box}
        rows="3"
        placeholder=${placeholder(model)}
        aria-describedby="why-not"
        value=${text}
        onInput=${(event) => setText(event.target.value)}
        onKeyDown=${keys}
      ></textarea>
      <div class="bar">
        <${ModelChooser} models=${models} model=${model} onChoose=${setName} />
        <p class="why-not" id="why-not">${reason ?? "Enter sends, Shift and Enter is a new line"}</p>
        <button class="primary" type="submit" aria-disabled=${reason ? "true" : "false"}>Ask</button>
      </div>
      <div class="folds">
        ${
          model?.chat !== false &&
          html`<details class="fold">
            <summary>Role${role !== null && role !== model?.system_prompt ? " (changed)" : ""}</summary>
            <label class="unseen" for="role">The role that the model is given</label>
            <textarea
              id="role"
              rows="3"
              placeholder="Without a role, the model's own template decides."
              value=${role ?? model?.system_prompt ?? ""}
              onInput=${(event) => setRole(event.target.value)}
            ></textarea>
          </details>`
        }
        <details class="fold">
          <summary>Sampling${Object.keys(chosen(sampling)).length ? " (changed)" : ""}</summary>
          <${Sampling} values=${sampling} onChange=${setSampling} model=${model} />
        </details>
      </div>
      <div aria-live="polite">
        ${
          other &&
          html`<p class="notice gentle">
            This looks like ${other}. ${model.id} works best with questions in English.
          </p>`
        }
        ${
          model &&
          !model.ready &&
          html`<p class="notice gentle">
            No worker has ${model.id} ready now. A question is kept and answered once one has.
          </p>`
        }
        ${problem && html`<p class="notice bad" role="alert">${problem.message}</p>`}
      </div>
      ${
        first &&
        text === "" &&
        html`<div class="examples">
          <h2>For example</h2>
          <ul>
            ${EXAMPLES.map(
              (example) => html`<li key=${example}>
                <button
                  type="button"
                  class="example"
                  onClick=${() => {
                    setText(example);
                    box.current?.focus();
                  }}
                >
                  ${example}
                </button>
              </li>`,
            )}
          </ul>
        </div>`
      }
    </form>
  `;
}

function placeholder(model) {
  if (model?.chat === false) return "A text for the model to continue";
  return model?.languages.includes("en") ? "Ask something, best in English" : "Ask something";
}

/** Why nothing can be sent now, or null. */
function whyNot({ text, models, model, sampling, keyMissing, sending }) {
  if (keyMissing) return "Enter an API key first";
  if (models === null) return "Looking for the models";
  if (model === null) return "No model is served here";
  if (sending) return "Sending";
  if (text.trim() === "") return "Write a question first";
  if (text.length > MAX_CHARS) return `Longer than ${MAX_CHARS.toLocaleString("en")} characters`;
  return fault(sampling, model);
}

function ModelChooser({ models, model, onChoose }) {
  if (!models || models.length < 2) {
    return html`<span class="model"
      ><span class=${`dot ${model?.ready ? "on" : ""}`}></span>${model?.id ?? "no model"}</span
    >`;
  }
  return html`
    <label class="model">
      <span class="unseen">Model</span>
      <span class=${`dot ${model?.ready ? "on" : ""}`}></span>
      <select value=${model?.id} onChange=${(event) => onChoose(event.target.value)}>
        ${models.map(
          ({ id, ready }) =>
            html`<option key=${id} value=${id}>${id}${ready ? "" : " (no worker ready)"}</option>`,
        )}
      </select>
    </label>
  `;
}
