// Depth by tenant and priority.
import { html } from "../lib/html.js";
import { count, plural } from "../lib/format.js";

const PRIORITIES = ["interactive", "normal", "batch"];
const MAX_SHOWN = 20;

export function Waiting({ queue }) {
  const rows = tenants(queue);
  return html`
    <section class="panel">
      <h2>Waiting, by tenant and priority</h2>
      ${
        rows.length === 0
          ? html`<p class="nothing">Nothing waits, nothing runs.</p>`
          : html`<div class="wide" tabindex="0" role="region" aria-label="Tenants">
              <table>
                <thead>
                  <tr>
                    <th>Tenant</th>
                    ${PRIORITIES.map((priority) => html`<th class="number" key=${priority}>${priority}</th>`)}
                    <th class="number">running</th>
                  </tr>
                </thead>
                <tbody>
                  ${rows.slice(0, MAX_SHOWN).map(
                    ({ tenant, lanes, others }) => html`<tr key=${tenant}>
                      <th scope="row">${tenant}</th>
                      ${PRIORITIES.map(
                        (priority) => html`<td class="number" key=${priority}>${cell(lanes[priority])}</td>`,
                      )}
                      <td class="number">${cell(others)}</td>
                    </tr>`,
                  )}
                </tbody>
                <tfoot>
                  <tr>
                    <th scope="row">All</th>
                    ${PRIORITIES.map(
                      (priority) =>
                        html`<td class="number" key=${priority}>${cell(queue.queued[priority])}</td>`,
                    )}
                    <td class="number">${cell(queue.running)}</td>
                  </tr>
                </tfoot>
              </table>
            </div>`
      }
      ${
        queue.delayed > 0 &&
        html`<p class="hint">${plural(queue.delayed, "job")} of those running will be tried again.</p>`
      }
      ${rows.length > MAX_SHOWN && html`<p class="hint">and ${count(rows.length - MAX_SHOWN)} more tenants</p>`}
    </section>
  `;
}

const cell = (number) => (number ? count(number) : html`<span class="zero">0</span>`);

/** Those with the most unfinished jobs first. */
function tenants({ unfinished, lanes }) {
  return Object.entries(unfinished)
    .map(([tenant, all]) => {
      const own = lanes[tenant] ?? {};
      const waiting = Object.values(own).reduce((sum, number) => sum + number, 0);
      return { tenant, lanes: own, others: Math.max(0, all - waiting), all };
    })
    .sort((one, other) => other.all - one.all);
}
