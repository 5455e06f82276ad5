// Who works: what on, how fast, and until when their leases hold.
import { html } from "../lib/html.js";
import { duration, rate } from "../lib/format.js";

export function Workers({ queue }) {
  return html`
    <section class="panel">
      <h2>Workers</h2>
      ${
        queue.workers.length === 0
          ? html`<p class="nothing">No worker has been here for a minute.</p>`
          : html`<div class="wide" tabindex="0" role="region" aria-label="Workers">
              <table>
                <thead>
                  <tr>
                    <th>Worker</th>
                    <th class="number">rows</th>
                    <th class="number">jobs/s</th>
                    <th class="number">tok/s</th>
                    <th class="number">leases</th>
                    <th class="number">first ends in</th>
                    <th class="number">heard</th>
                  </tr>
                </thead>
                <tbody>
                  ${queue.workers.map(
                    (worker) =>
                      html`<${Worker} key=${worker.id} worker=${worker} held=${queue.leases[worker.id]} />`,
                  )}
                </tbody>
              </table>
            </div>`
      }
    </section>
  `;
}

function Worker({ worker, held }) {
  const made = [worker.backend, worker.dtype].filter((word) => word && word !== "none").join(" ");
  return html`<tr>
    <th scope="row">
      <span class=${`dot ${worker.alive && worker.state === "ready" ? "on" : ""}`}></span>${worker.id}
      <span class="more">${worker.alive ? worker.state : "silent"}${made && `, ${made}`}</span>
    </th>
    <td class="number">${worker.rows}${worker.slots ? ` / ${worker.slots}` : ""}</td>
    <td class="number">${rate(worker.jobs_per_s)}</td>
    <td class="number">${rate(worker.tokens_per_s)}</td>
    <td class="number">${held?.number ?? 0}</td>
    <td class="number">${held ? duration(held.first_ends_in_ms) : "–"}</td>
    <td class="number">${duration(worker.beat_age_ms)} ago</td>
  </tr>`;
}
