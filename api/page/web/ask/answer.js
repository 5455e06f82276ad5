// The answer as it grows, its reasoning folded, and how it was made.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { call } from "../lib/api.js";
import { count, duration, plural, rate } from "../lib/format.js";
import { show } from "../render/markdown.js";
import { copied } from "../render/code.js";
import { split } from "../render/reasoning.js";

export function Answer({ job, id }) {
  const { reasoning, answer, thinking } = parts(job);
  const ended = job.phase === "ended";
  return html`
    <section class="answer" aria-label="Answer" aria-busy=${ended ? "false" : "true"}>
      <${Status} job=${job} thinking=${thinking} />
      ${reasoning && html`<${Reasoning} text=${reasoning} thinking=${thinking && !ended} />`}
      ${answer && html`<${Markdown} text=${answer} ended=${ended} />`}
      ${ended && job.result.error && html`<${Ending} result=${job.result} />`}
      <div class="actions">
        ${!ended && html`<${Cancel} id=${id} job=${job} />`}
        ${ended && answer && html`<${CopyAnswer} text=${answer} />`}
      </div>
      ${ended && html`<${Receipt} result=${job.result} />`}
    </section>
  `;
}

/** What the service tells apart; where it does not, what the markers in the text do. */
function parts({ result, text, reasoning }) {
  const answer = result ? result.text : text;
  const thought = result ? result.reasoning_content : reasoning;
  return thought ? { reasoning: thought, answer, thinking: !answer } : split(answer);
}

function Markdown({ text, ended }) {
  const place = useRef(null);
  useEffect(() => show(place.current, text, { ended }), [text, ended]);
  return html`<div class=${`prose ${ended ? "" : "growing"}`} ref=${place}></div>`;
}

function Reasoning({ text, thinking }) {
  const words = text.trim().split(/\s+/).length;
  return html`
    <details class="fold reasoning">
      <summary>${thinking ? "Reasoning" : "Reasoned"} <span>${plural(words, "word")}</span></summary>
      <${Markdown} text=${text} ended=${!thinking} />
    </details>
  `;
}

/** What happens now, in words. Changes are read out; the text itself is not, while it grows. */
function Status({ job, thinking }) {
  const words = inWords(job, thinking);
  const over = job.phase === "ended";
  return html`<p class=${`status ${over ? "unseen" : job.phase}`} role="status">
    ${over && "The answer is complete"}${words.now && html`<span class="pulse" aria-hidden="true"></span>`}${words.now}
    ${words.more && html`<span class="more">${words.more}</span>`}
  </p>`;
}

function inWords(job, thinking) {
  if (job.broken) return { now: "The connection broke; it is being made again" };
  const { state } = job;
  switch (job.phase) {
    case "looking":
      return { now: "Looking for the answer" };
    case "queued": {
      const reason = state?.reason?.message ?? "";
      // The reason tells how many are ahead, if that is the reason.
      const left = state?.estimate_s ? `about ${duration(state.estimate_s * 1000)} to go` : "";
      return { now: `Waiting: ${reason || "it has just been queued"}`, more: left };
    }
    case "running":
      if (state?.cancelling) return { now: "Cancelling" };
      if (thinking) return { now: "Reasoning" };
      return { now: job.text ? "Answering" : "Reading the question" };
    default:
      return {};
  }
}

function Ending({ result }) {
  const words = {
    cancelled: "Cancelled. This is what was written until then.",
    expired: "Its deadline passed before it was answered.",
  }[result.status];
  return html`<p class=${`notice ${words ? "gentle" : "bad"}`}>
    ${words ?? `It failed: ${result.error.message}`}
  </p>`;
}

function Cancel({ id, job }) {
  const [asked, setAsked] = useState(false);
  const cancel = async () => {
    setAsked(true);
    await call("DELETE", `v1/jobs/${id}`).catch(() => setAsked(false));
  };
  if (job.phase === "looking") return null;
  return html`<button type="button" aria-disabled=${asked ? "true" : "false"} onClick=${cancel}>
    ${asked ? "Cancelling" : "Cancel"}
  </button>`;
}

function CopyAnswer({ text }) {
  const [done, setDone] = useState(null);
  const copy = async () => {
    setDone(await copied(text));
    setTimeout(() => setDone(null), 2000);
  };
  const words = { null: "Copy the answer", true: "Copied", false: "Select and copy by hand" };
  return html`<button type="button" onClick=${copy}>${words[done]}</button>`;
}

const ENDS = {
  stop: "the model ended it",
  length: "the length limit ended it",
  loop: "it began to repeat itself",
  cancelled: "cancelled",
  error: "an error ended it",
};

function inVotes({ vote, choices }) {
  if (vote.winner == null) return "no text has an answer";
  const answer = vote.answer.length > 60 ? "The same" : vote.answer;
  return `${answer}, by ${vote.answers[0].count} of ${plural(choices.length, "text")}`;
}

const fact = ([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`;

/** How the answer was made. */
export function Receipt({ result }) {
  const { receipt, usage } = result;
  if (!receipt) return null;
  const decoding_s = (receipt.run_ms - receipt.first_token_ms) / 1000;
  const written = usage?.completion_tokens ?? 0;
  const here = written - (receipt.resumed_tokens ?? 0);
  const tokens_per_s = here > 1 && decoding_s > 0 ? (here - 1) / decoding_s : null;
  const facts = [
    ["Waited", duration(receipt.queue_wait_ms)],
    written > 0 && ["First token", duration(receipt.first_token_ms)],
    ["Took", duration(receipt.run_ms)],
    tokens_per_s && ["Speed", `${rate(tokens_per_s)} tok/s`],
    ["Window", plural(receipt.window_jobs, "job")],
    receipt.batch_rows > 0 && ["Batch", plural(receipt.batch_rows, "row")],
    receipt.resumed_tokens > 0 && ["Went on behind", plural(receipt.resumed_tokens, "token")],
    receipt.attempt > 1 && ["Attempt", String(receipt.attempt)],
  ].filter(Boolean);
  const long = [
    result.vote && ["Vote", inVotes(result)],
    usage && ["Tokens", `${count(usage.prompt_tokens)} read, ${count(written)} written`],
    ["Ended", ENDS[result.finish_reason] ?? result.finish_reason],
    ["Model", [receipt.model, receipt.adapter].filter(Boolean).join(" + ")],
    ["Computed by", [receipt.backend, receipt.dtype].filter((w) => w && w !== "none").join(", ")],
    ["Seed", String(receipt.seed)],
  ].filter(Boolean);
  return html`
    <section class="receipt" aria-label="Receipt">
      <h2>Receipt</h2>
      <dl>${facts.map(fact)}</dl>
      <dl class="long">${long.map(fact)}</dl>
      ${receipt.prompt_truncated && html`<p class="hint">The question was too long and was cut.</p>`}
    </section>
  `;
}
