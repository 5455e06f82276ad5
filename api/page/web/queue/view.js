// Queue: what waits, the batch as it runs, who works, how fast, and what went wrong. Live.
import { html, useState } from "../lib/html.js";
import { count, plural, rate } from "../lib/format.js";
import { Charts } from "./charts.js";
import { DeadLetters } from "./dead.js";
import { useQueue } from "./feed.js";
import { Batch } from "./strip.js";
import { Waiting } from "./waiting.js";
import { Workers } from "./workers.js";

export function Queue({ models }) {
  const [name, setName] = useState(null);
  const model = name ?? models?.[0]?.id ?? null;
  const { queue, history, batches, live, problem } = useQueue(model);
  return html`
    <div class="queue">
      <header class="heading">
        <h1>Queue</h1>
        ${
          models?.length > 1 &&
          html`<label class="model">
            <span class="unseen">Model</span>
            <select value=${model} onChange=${(event) => setName(event.target.value)}>
              ${models.map(({ id }) => html`<option key=${id} value=${id}>${id}</option>`)}
            </select>
          </label>`
        }
        <p class="live" role="status"><span class=${`dot ${live ? "on" : ""}`}></span>${state(live, problem)}</p>
      </header>
      ${problem && html`<p class="notice bad" role="alert">${explained(problem)}</p>`}
      ${
        queue &&
        html`
          <${Figures} queue=${queue} moment=${history.at(-1)} />
          <section aria-label="The batch">
            <${Batch} batches=${batches} workers=${queue.workers} />
          </section>
          <${Charts} history=${history} />
          <div class="pair">
            <${Waiting} queue=${queue} />
            <${Workers} queue=${queue} />
          </div>
        `
      }
      <${DeadLetters} model=${model} number=${queue?.dead} />
    </div>
  `;
}

const state = (live, problem) => (live ? "Live" : problem ? "Not live" : "Connecting");

const explained = (problem) =>
  problem.status === 403
    ? "The queue shows what all tenants do, so it needs a key with the scope admin. Your own dead letters are below."
    : problem.message;

function Figures({ queue, moment }) {
  const facts = [
    ["Waiting", count(queue.depth), queue.delayed ? `${count(queue.delayed)} to be tried again` : ""],
    ["Running", count(queue.running), plural(queue.workers.filter((w) => w.alive).length, "worker")],
    ["Jobs a second", rate(queue.jobs_per_s), `${count(queue.done.succeeded ?? 0)} succeeded so far`],
    ["Tokens a second", moment ? rate(moment.tokens_per_s) : "–", "over the last 30 s"],
    ["Dead letters", count(queue.dead), queue.dead ? "see below" : ""],
  ];
  return html`
    <dl class="figures">
      ${facts.map(
        ([name, value, more]) => html`<div key=${name}>
          <dt>${name}</dt>
          <dd>${value}<span>${more}</span></dd>
        </div>`,
      )}
    </dl>
  `;
}
