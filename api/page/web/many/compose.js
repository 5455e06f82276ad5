// What to run: a list of prompts, a table with a template, or lines of JSON; pasted, chosen or dropped.
import { html, useEffect, useMemo, useRef, useState } from "../lib/html.js";
import { call } from "../lib/api.js";
import { plural } from "../lib/format.js";
import { go } from "../lib/route.js";
import { fromJsonLines, fromPrompts, fromTable, promptOf } from "./requests.js";

const KINDS = {
  list: { title: "List of prompts", hint: "One prompt a line" },
  table: { title: "Table with a template", hint: "CSV with a line of column names, then a row a request" },
  jsonl: {
    title: "JSON lines",
    hint: 'Lines of a batch file, or objects with a "prompt" or "messages"',
  },
};
const SUFFIXES = { csv: "table", tsv: "table", jsonl: "jsonl", ndjson: "jsonl", txt: "list" };
const EXAMPLES = {
  list: "What is the capital of France?\nName three rivers.\nWhy is the sky blue?",
  table: "city,country\nParis,France\nRome,Italy\nOslo,Norway",
  jsonl: '{"prompt": "Count to five."}\n{"custom_id": "greeting", "prompt": "Say hello.", "max_tokens": 16}',
};
const EXAMPLE_TEMPLATE = "Say one sentence about {city} in {country}.";

let loading = null;
const loadPapa = () =>
  (loading ??= import("../vendor/papaparse/papaparse.min.js").then(() => globalThis.Papa));

export function Compose({ models }) {
  const [kind, setKind] = useState("list");
  const [texts, setTexts] = useState({ list: "", table: "", jsonl: "" });
  const [template, setTemplate] = useState("");
  const [name, setName] = useState(null);
  const [longest, setLongest] = useState("");
  const [over, setOver] = useState(false);
  const [sending, setSending] = useState(null);
  const [problem, setProblem] = useState(null);
  const file = useRef(null);

  const model = models?.find((one) => one.id === name) ?? models?.[0] ?? null;
  const table = useTable(kind === "table" ? texts.table : "");
  const found = useMemo(() => {
    const extra = longest.trim() ? { max_tokens: Number(longest) } : {};
    if (kind === "list") return fromPrompts(texts.list, model, extra);
    if (kind === "jsonl") return fromJsonLines(texts.jsonl, model, extra);
    return table.fault
      ? { lines: [], fault: table.fault }
      : fromTable(table.rows, table.columns, template, model, extra);
  }, [kind, texts, template, table, model?.id, model?.chat, longest]);
  const reason = sending ?? lengthFault(longest, model) ?? found.fault;

  const write = (text, into = kind) => setTexts((old) => ({ ...old, [into]: text }));
  async function take(dropped) {
    if (!dropped) return;
    const into = SUFFIXES[dropped.name.split(".").pop().toLowerCase()] ?? kind;
    setKind(into);
    write(await dropped.text(), into);
  }

  async function run(event) {
    event.preventDefault();
    if (reason) return;
    setProblem(null);
    setSending("Sending");
    try {
      const body = new FormData();
      body.append("purpose", "batch");
      const lines = found.lines.map((line) => JSON.stringify(line)).join("\n");
      body.append("file", new Blob([`${lines}\n`], { type: "application/jsonl" }), "requests.jsonl");
      const { id } = await call("POST", "v1/files", { body });
      const batch = await call("POST", "v1/batches", {
        body: { input_file_id: id, endpoint: found.endpoint, completion_window: "24h" },
      });
      go("many", batch.id);
    } catch (error) {
      setProblem(error);
    } finally {
      setSending(null);
    }
  }

  return html`
    <form
      class=${`compose ${over ? "over" : ""}`}
      onSubmit=${run}
      onDragOver=${(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave=${() => setOver(false)}
      onDrop=${(event) => {
        event.preventDefault();
        setOver(false);
        take(event.dataTransfer.files[0]);
      }}
    >
      <fieldset class="kinds">
        <legend class="unseen">What you have</legend>
        ${Object.entries(KINDS).map(
          ([one, { title }]) => html`<label key=${one}>
            <input type="radio" name="kind" value=${one} checked=${kind === one} onChange=${() => setKind(one)} />
            <span>${title}</span>
          </label>`,
        )}
      </fieldset>
      <div class="entry">
        <label class="unseen" for="requests">${KINDS[kind].title}</label>
        <textarea
          id="requests"
          rows="9"
          spellcheck=${kind === "list"}
          class=${kind === "list" ? "" : "code-like"}
          placeholder=${`${KINDS[kind].hint}. Paste it, or drop a file.`}
          value=${texts[kind]}
          onInput=${(event) => write(event.target.value)}
        ></textarea>
        <div class="bar under">
          <button type="button" class="quiet" onClick=${() => file.current.click()}>Choose a file</button>
          <button
            type="button"
            class="quiet"
            onClick=${() => {
              write(EXAMPLES[kind]);
              if (kind === "table") setTemplate(EXAMPLE_TEMPLATE);
            }}
          >
            Fill in an example
          </button>
          <input
            ref=${file}
            type="file"
            hidden
            aria-label="File"
            accept=".jsonl,.ndjson,.csv,.tsv,.txt"
            onChange=${(event) => take(event.target.files[0])}
          />
        </div>
      </div>
      ${
        kind === "table" &&
        html`<div class="template">
          <label for="template">Template</label>
          <textarea
            id="template"
            rows="2"
            placeholder="Translate to French: {text}"
            value=${template}
            onInput=${(event) => setTemplate(event.target.value)}
          ></textarea>
          ${
            table.columns.length > 0 &&
            html`<p class="columns">
              Columns
              ${table.columns.map(
                (column) => html`<button
                  key=${column}
                  type="button"
                  class="quiet"
                  onClick=${() => setTemplate((old) => `${old}{${column}}`)}
                >
                  {${column}}
                </button>`,
              )}
            </p>`
          }
        </div>`
      }
      <div class="options">
        <label class="field">
          <span>Model</span>
          <select value=${model?.id} onChange=${(event) => setName(event.target.value)}>
            ${(models ?? []).map(({ id }) => html`<option key=${id} value=${id}>${id}</option>`)}
          </select>
        </label>
        <label class="field">
          <span>Longest answer, in tokens</span>
          <input
            inputmode="numeric"
            autocomplete="off"
            placeholder=${model?.sampling.max_tokens ?? ""}
            value=${longest}
            onInput=${(event) => setLongest(event.target.value)}
          />
        </label>
        <div class="send">
          <p class="why-not" id="why-not">${reason ?? preview(found.lines)}</p>
          <button class="primary" type="submit" aria-disabled=${reason ? "true" : "false"} aria-describedby="why-not">
            ${found.lines.length ? `Run ${plural(found.lines.length, "request")}` : "Run"}
          </button>
        </div>
      </div>
      ${problem && html`<p class="notice bad" role="alert">${problem.message}</p>`}
    </form>
  `;
}

const preview = (lines) => {
  const first = promptOf(lines[0]);
  return `First: ${first.length > 60 ? `${first.slice(0, 60)}…` : first}`;
};

function lengthFault(longest, model) {
  if (longest.trim() === "") return null;
  const most = model?.max_output_tokens ?? 131072;
  const fits = /^\d+$/.test(longest.trim()) && Number(longest) >= 1 && Number(longest) <= most;
  return fits ? null : `Longest answer has to be between 1 and ${most} tokens`;
}

/** {rows, columns, fault} of a CSV, its separator guessed. */
function useTable(text) {
  const [table, setTable] = useState({ rows: [], columns: [], fault: "Nothing to run yet" });
  useEffect(() => {
    if (text.trim() === "") return setTable({ rows: [], columns: [], fault: "Nothing to run yet" });
    let current = true;
    loadPapa().then((papa) => {
      const { data, meta, errors } = papa.parse(text.trim(), { header: true, skipEmptyLines: "greedy" });
      const error = errors.find(({ type }) => type !== "Delimiter");
      const fault = error && `Row ${(error.row ?? 0) + 1} of the table: ${error.message}`;
      if (current) setTable({ rows: data, columns: meta.fields ?? [], fault: fault ?? null });
    });
    return () => (current = false);
  }, [text]);
  return table;
}
