// One job as it goes on: its state while it waits, its text as it comes, its result.
import { Problem, events, get } from "../lib/api.js";
import { useEffect, useState } from "../lib/html.js";

const LOOK_EVERY_MS = 1000;
// Text is shown this often at most.
const SHOW_EVERY_MS = 60;

const START = { phase: "looking", text: "", reasoning: "", state: null, result: null, problem: null, broken: false };

/** Follows the job `id` until it has ended. */
export function useJob(id) {
  const [job, setJob] = useState(START);
  useEffect(() => {
    const leaving = new AbortController();
    const signal = leaving.signal;
    const set = (change) => signal.aborted || setJob((old) => ({ ...old, ...change }));
    setJob(START);
    follow(id, set, signal).catch((problem) => set({ phase: "lost", problem }));
    return () => leaving.abort();
  }, [id]);
  return job;
}

async function follow(id, set, signal) {
  const state = await get(`v1/jobs/${id}`, signal);
  if (state.result) return set({ phase: "ended", state, result: state.result });
  set({ phase: state.status, state });
  let started = state.status === "running";
  let over = false;
  const looking = lookWhileWaiting(id, set, signal, () => started || over);
  const growing = (name) => new GrowingText((shown) => set({ [name]: shown, phase: "running", broken: false }));
  const text = growing("text");
  const reasoning = growing("reasoning");
  try {
    const last = (event) => event.type === "finished";
    const onBreak = () => set({ broken: true });
    for await (const { type, data } of events(`v1/jobs/${id}/events`, { signal, last, onBreak })) {
      if (type === "started") {
        started = true;
        set({ phase: "running", broken: false });
      } else if (data.index > 0) {
        // Of several texts the first is shown as it grows.
      } else if (type === "delta") {
        text.add(data);
      } else if (type === "reasoning") {
        reasoning.add(data);
      } else if (type === "reset") {
        text.clear();
        reasoning.clear();
      } else if (type === "finished") {
        set({ phase: "ended", result: data.result ?? (await get(`v1/jobs/${id}`, signal)).result });
      }
    }
  } finally {
    over = true;
    text.close();
    reasoning.close();
    await looking;
  }
}

async function lookWhileWaiting(id, set, signal, done) {
  while (!done() && !signal.aborted) {
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
    if (done() || signal.aborted) return;
    try {
      const state = await get(`v1/jobs/${id}`, signal);
      if (!done()) set({ state });
    } catch (error) {
      if (error instanceof Problem && !error.passing) return;
    }
  }
}

/** Collects deltas, whose offsets count code points, and shows them in steps. */
class GrowingText {
  constructor(show) {
    this.parts = [];
    this.length = 0;
    this.show = show;
    this.timer = null;
  }

  add({ text, offset }) {
    if (offset > this.length) this.parts.push(" … ");
    this.parts.push(text);
    this.length = offset + [...text].length;
    this.timer ??= setTimeout(() => this.flush(), SHOW_EVERY_MS);
  }

  clear() {
    this.parts = [];
    this.length = 0;
    this.flush();
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = null;
    this.show(this.parts.join(""));
  }

  close() {
    clearTimeout(this.timer);
  }
}
