// A batch under its address: how far it is, its rows as they fill, its files.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { call } from "../lib/api.js";
import { count, duration, plural } from "../lib/format.js";
import { link } from "../lib/route.js";
import { ENDED, useBatch } from "./batch.js";
import { saveJsonLines, saveTable } from "./download.js";
import { Mosaic } from "./mosaic.js";

const PAGE = 50;
// Longer texts are cut; the style sheet says after how many lines.
const LONG_CHARS = 480;
const LONG_LINES = 8;
const WORDS = {
  validating: "Its lines are being checked",
  in_progress: "Running",
  finalizing: "Its files are being finished",
  completed: "Completed",
  failed: "It failed before anything ran",
  expired: "Its time ran out; what was answered until then is kept",
  cancelling: "Cancelling",
  cancelled: "Cancelled; what was answered until then is kept",
};

export function Progress({ id }) {
  const { batch, requests, answers, problem } = useBatch(id);
  const heading = useRef(null);
  useEffect(() => heading.current?.focus(), [batch !== null]);
  if (batch === null) {
    return problem
      ? html`<h1 tabindex="-1" ref=${heading}>This batch is not here</h1>
          <p>${problem.status === 404 ? "There is no such batch of yours." : problem.message}</p>`
      : html`<p class="status" role="status"><span class="pulse"></span>Looking for the batch</p>`;
  }
  const { completed, failed, total } = batch.request_counts;
  const over = ENDED.has(batch.status);
  return html`
    <header class="heading">
      <h1 tabindex="-1" ref=${heading}>${plural(total || requests.length, "request")}</h1>
      <a href=${link("many")}>New batch</a>
    </header>
    ${problem && html`<p class="notice bad" role="alert">${problem.message}</p>`}
    <section class="panel progress" aria-label="Progress">
      <p class="status" role="status">
        ${!over && html`<span class="pulse" aria-hidden="true"></span>`}${WORDS[batch.status]}
        ${inNumbers(batch) && html`<span class="more">${inNumbers(batch)}</span>`}
      </p>
      <progress max=${total || 1} value=${completed + failed} aria-label="Answered"></progress>
      <${Mosaic} requests=${requests} answers=${answers} />
      <div class="actions">
        ${!over && html`<${Cancel} batch=${batch} />`}
        ${
          answers.size > 0 &&
          html`
            <button type="button" onClick=${() => saveJsonLines(batch)}>Download JSON lines</button>
            <button type="button" onClick=${() => saveTable(batch, requests, answers)}>Download CSV</button>
          `
        }
      </div>
      ${batch.errors?.data.length > 0 && html`<${Faults} faults=${batch.errors.data} />`}
    </section>
    ${requests.length > 0 && html`<${Rows} requests=${requests} answers=${answers} over=${over} />`}
  `;
}

function inNumbers(batch) {
  const { completed, failed, total } = batch.request_counts;
  if (total === 0) return "";
  const parts = [`${count(completed + failed)} of ${count(total)} answered`];
  if (failed) parts.push(`${count(failed)} failed`);
  if (batch.usage?.output_tokens) parts.push(plural(batch.usage.output_tokens, "token"));
  const end = batch[`${batch.status}_at`];
  if (batch.in_progress_at && ENDED.has(batch.status) && end) {
    // The API tells whole seconds.
    const took_s = Math.max(1, end - batch.in_progress_at);
    parts.push(`in ${took_s < 60 ? plural(took_s, "second") : duration(took_s * 1000)}`);
  }
  return parts.join(", ");
}

function Cancel({ batch }) {
  const [asked, setAsked] = useState(batch.status === "cancelling");
  const cancel = async () => {
    setAsked(true);
    await call("POST", `v1/batches/${batch.id}/cancel`).catch(() => setAsked(false));
  };
  return html`<button type="button" aria-disabled=${asked ? "true" : "false"} onClick=${cancel}>
    ${asked ? "Cancelling" : "Cancel"}
  </button>`;
}

function Faults({ faults }) {
  return html`<ul class="faults">
    ${faults.map(
      ({ line, message }, i) => html`<li key=${i}>${line ? `Line ${line}: ` : ""}${message}</li>`,
    )}
  </ul>`;
}

function Rows({ requests, answers, over }) {
  const [page, setPage] = useState(0);
  const pages = Math.ceil(requests.length / PAGE);
  return html`
    <section class="rows" aria-label="Requests and answers">
      <ol start=${page * PAGE + 1}>
        ${requests.slice(page * PAGE, (page + 1) * PAGE).map(
          ({ id, prompt }) =>
            html`<${Row} key=${id} id=${id} prompt=${prompt} answer=${answers.get(id)} over=${over} />`,
        )}
      </ol>
      ${
        pages > 1 &&
        html`<nav class="bar" aria-label="Pages">
          <button type="button" aria-disabled=${page === 0 ? "true" : "false"} onClick=${() => page > 0 && setPage(page - 1)}>
            Previous
          </button>
          <span>Page ${page + 1} of ${pages}</span>
          <button
            type="button"
            aria-disabled=${page === pages - 1 ? "true" : "false"}
            onClick=${() => page < pages - 1 && setPage(page + 1)}
          >
            Next
          </button>
        </nav>`
      }
    </section>
  `;
}

function Row({ id, prompt, answer, over }) {
  const state = answer ? (answer.error ? "failed" : "answered") : "waits";
  return html`<li class=${state}>
    <div class="asked"><span>${id}</span><${Text} text=${prompt} /></div>
    <div class="answered">
      ${
        answer
          ? html`<${Text} text=${answer.error ?? answer.text} />`
          : html`<p><i>${over ? "not answered" : "waiting"}</i></p>`
      }
    </div>
  </li>`;
}

/** A long one is cut after some lines until somebody wants all of it. */
function Text({ text }) {
  const [whole, setWhole] = useState(false);
  const shown = text.trim();
  const long = shown.length > LONG_CHARS || shown.split("\n").length > LONG_LINES;
  return html`
    <p class=${long && !whole ? "cut" : ""}>${shown || html`<i>empty</i>`}</p>
    ${
      long &&
      html`<button type="button" class="quiet" aria-expanded=${whole ? "true" : "false"} onClick=${() => setWhole(!whole)}>
        ${whole ? "Show less" : "Show all"}
      </button>`
    }
  `;
}
