// The queue's event stream as state: the whole queue each second, the batches several times a second.
import { events } from "../lib/api.js";
import { useEffect, useState } from "../lib/html.js";
import { SlotBook } from "./slotbook.js";

const KEPT_MOMENTS = 600;
const NOTHING = { queue: null, history: [], batches: new Map(), live: false, problem: null };

/** {queue, history, batches, live, problem} of this model's queue; `batches` are a SlotBook by worker. */
export function useQueue(model) {
  const [seen, setSeen] = useState(NOTHING);
  useEffect(() => {
    const leaving = new AbortController();
    const { signal } = leaving;
    const batches = new Map();
    setSeen({ ...NOTHING, batches });
    if (model === null) return;
    const set = (change) => signal.aborted || setSeen((old) => ({ ...old, ...change(old) }));

    const take = ({ type, data }) => {
      if (type === "history") {
        set(() => ({ history: data, live: true, problem: null }));
      } else if (type === "queue") {
        const alive = new Set(data.workers.filter((w) => w.alive).map((w) => w.id));
        for (const worker of batches.keys()) if (!alive.has(worker)) batches.delete(worker);
        set((old) => ({
          queue: data,
          live: true,
          problem: null,
          history: [...old.history, moment(data)].slice(-KEPT_MOMENTS),
        }));
      } else if (type === "rows") {
        if (!batches.has(data.worker)) batches.set(data.worker, new SlotBook());
        batches.get(data.worker).take(data, performance.now());
      } else if (type === "away") {
        set(() => ({ live: false, problem: new Error("Redis does not answer; trying again") }));
      }
    };

    (async () => {
      const path = `v1/queue/events?model=${encodeURIComponent(model)}`;
      const onBreak = () => set(() => ({ live: false }));
      for await (const event of events(path, { signal, onBreak })) take(event);
    })().catch((problem) => set(() => ({ live: false, problem })));
    return () => leaving.abort();
  }, [model]);
  return seen;
}

/** The same as an entry of `history`, which the API makes every two seconds. */
function moment(queue) {
  const workers = queue.workers.filter((w) => w.alive);
  const told = workers.filter((w) => w.latency_p50_ms !== undefined);
  const weight = (w) => Math.max(w.jobs_per_s, 0.001);
  const total = told.reduce((sum, w) => sum + weight(w), 0);
  const mean = (name) =>
    told.length ? told.reduce((sum, w) => sum + w[name] * weight(w), 0) / total : null;
  const worst = (name) => (told.length ? Math.max(...told.map((w) => w[name])) : null);
  return {
    at_ms: Date.now(),
    queued: queue.depth,
    running: queue.running,
    jobs_per_s: queue.jobs_per_s,
    tokens_per_s: workers.reduce((sum, w) => sum + w.tokens_per_s, 0),
    wait_p50_ms: mean("wait_p50_ms"),
    wait_p90_ms: worst("wait_p90_ms"),
    latency_p50_ms: mean("latency_p50_ms"),
    latency_p90_ms: worst("latency_p90_ms"),
  };
}
