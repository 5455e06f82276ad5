// Dead letters: why, what was asked, and again.
import { html, useEffect, useState } from "../lib/html.js";
import { call, get } from "../lib/api.js";
import { count, plural } from "../lib/format.js";
import { link } from "../lib/route.js";

const PAGE = 20;

export function DeadLetters({ model, number }) {
  const [page, setPage] = useState(null);
  const [problem, setProblem] = useState(null);
  // Those that were retried here stay, with the way to their new job, though the queue has them no more.
  const [retried, setRetried] = useState([]);
  useEffect(() => {
    if (model === null) return;
    const leaving = new AbortController();
    get(`v1/dead?limit=${PAGE}&model=${encodeURIComponent(model)}`, leaving.signal)
      .then((found) => {
        setPage(found);
        setProblem(null);
      })
      .catch((error) => error.name === "AbortError" || setProblem(error));
    return () => leaving.abort();
  }, [model, number]);

  useEffect(() => setRetried([]), [model]);

  const found = page?.jobs ?? [];
  const there = new Set(found.map((job) => job.id));
  const jobs = [...found, ...retried.filter((job) => !there.has(job.id))].sort(
    (one, other) => other.finished_ms - one.finished_ms,
  );
  return html`
    <section class="panel dead">
      <h2>Dead letters</h2>
      <p class="hint">Jobs that ran out of attempts. A retry is a new job with the same request.</p>
      ${problem && html`<p class="notice bad" role="alert">${problem.message}</p>`}
      ${page && jobs.length === 0 && html`<p class="nothing">None.</p>`}
      <ul>
        ${jobs.map(
          (job) => html`<${Letter}
            key=${job.id}
            job=${job}
            onRetried=${() => setRetried((old) => [...old, job])}
          />`,
        )}
      </ul>
      ${page?.cursor && html`<p class="hint">The newest ${PAGE} are shown.</p>`}
    </section>
  `;
}

function Letter({ job, onRetried }) {
  const [asked, setAsked] = useState(null);
  const [retried, setRetried] = useState(null);
  const [problem, setProblem] = useState(null);

  const show = async (event) => {
    if (!event.target.open || asked) return;
    try {
      setAsked((await get(`v1/dead/${job.id}`)).request);
    } catch (error) {
      setProblem(error);
    }
  };
  const retry = async () => {
    try {
      const { id } = await call("POST", `v1/dead/${job.id}/retry`);
      onRetried();
      setRetried(id);
    } catch (error) {
      setProblem(error);
    }
  };

  return html`<li>
    <div class="letter">
      <div>
        <p><b>${job.error?.message ?? "It failed"}</b></p>
        <p class="hint">
          ${new Date(job.finished_ms).toLocaleString("en-GB")}, ${plural(job.attempts, "attempt")}${
            job.deaths ? `, ${count(job.deaths)} workers died of it` : ""
          }, <code>${job.id}</code>
        </p>
      </div>
      ${
        retried
          ? html`<a class="button" href=${link("ask", retried)}>See the new job</a>`
          : html`<button type="button" onClick=${retry} aria-label=${`Retry ${job.id}`}>Retry</button>`
      }
    </div>
    <details class="fold" onToggle=${show}>
      <summary>What was asked</summary>
      ${asked && html`<pre tabindex="0">${JSON.stringify(asked, null, 2)}</pre>`}
    </details>
    ${problem && html`<p class="notice bad" role="alert">${problem.message}</p>`}
  </li>`;
}
