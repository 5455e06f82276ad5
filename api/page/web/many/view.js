// Many at once: a batch file from whatever one has, run as a batch of the API, under an address of its own.
import { html, useEffect, useState } from "../lib/html.js";
import { get } from "../lib/api.js";
import { count } from "../lib/format.js";
import { link } from "../lib/route.js";
import { Compose } from "./compose.js";
import { Progress } from "./progress.js";

const SHOWN = 10;

export function Many({ id, models }) {
  return html`<div class="many">
    ${
      id !== null
        ? html`<${Progress} key=${id} id=${id} />`
        : html`
            <h1>Many at once</h1>
            <${Compose} models=${models} />
            <${Batches} />
          `
    }
  </div>`;
}

function Batches() {
  const [batches, setBatches] = useState([]);
  useEffect(() => {
    const leaving = new AbortController();
    get(`v1/batches?limit=${SHOWN}`, leaving.signal)
      .then(({ data }) => setBatches(data))
      .catch(() => {}); // the form tells what is wrong when it is sent
    return () => leaving.abort();
  }, []);
  if (batches.length === 0) return null;
  return html`
    <section class="earlier">
      <header><h2>Batches</h2></header>
      <ul>
        ${batches.map(
          ({ id, status, created_at, request_counts: { completed, failed, total } }) => html`<li key=${id}>
            <a href=${link("many", id)}>
              ${new Date(created_at * 1000).toLocaleString("en-GB")}
              <span>${status.replace("_", " ")}, ${count(completed + failed)} of ${count(total)}</span>
            </a>
          </li>`,
        )}
      </ul>
    </section>
  `;
}
