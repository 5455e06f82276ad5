// Ask: one question, one durable answer, under an address of its own.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { plural } from "../lib/format.js";
import { link } from "../lib/route.js";
import { Answer } from "./answer.js";
import { asked, forget, question } from "./asked.js";
import { Composer } from "./composer.js";
import { useJob } from "./job.js";

export function Ask({ id, models, keyMissing }) {
  return html`
    <div class="ask">
      ${id === null ? html`<h1>Ask a question</h1>` : html`<${Asked} key=${id} id=${id} />`}
      <${Composer} models=${models} keyMissing=${keyMissing} first=${id === null} />
      <${Earlier} current=${id} />
    </div>
  `;
}

function Asked({ id }) {
  const job = useJob(id);
  const heading = useRef(null);
  useEffect(() => heading.current?.focus(), []);
  const text = question(id)?.question ?? job.result?.metadata?.question;
  if (job.phase === "lost") {
    return html`
      <h1 ref=${heading} tabindex="-1">This answer is not here</h1>
      <p>
        ${
          job.problem.status === 404
            ? "There is no such job, or its result was kept as long as results are kept, and is gone."
            : job.problem.message
        }
      </p>
    `;
  }
  return html`
    <article>
      <h1 class="question" ref=${heading} tabindex="-1">${text ?? "A question from elsewhere"}</h1>
      <${Answer} job=${job} id=${id} />
    </article>
  `;
}

function Earlier({ current }) {
  const [, again] = useState(0);
  const others = asked().filter((one) => one.id !== current);
  if (others.length === 0) return null;
  return html`
    <section class="earlier">
      <header>
        <h2>Asked before</h2>
        <button
          type="button"
          class="quiet"
          onClick=${() => {
            forget();
            again((n) => n + 1);
          }}
        >
          Forget ${plural(others.length, "question")}
        </button>
      </header>
      <ul>
        ${others
          .slice(0, 8)
          .map((one) => html`<li key=${one.id}><a href=${link("ask", one.id)}>${one.question}</a></li>`)}
      </ul>
    </section>
  `;
}
