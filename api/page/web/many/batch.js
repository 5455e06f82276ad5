// One batch as it goes on: what the API says of it, its requests, and the answers that are there.
import { Problem, get, parse, request } from "../lib/api.js";
import { useEffect, useState } from "../lib/html.js";
import { answerOf, promptOf } from "./requests.js";

const LOOK_EVERY_MS = 1000;
// A look, with the reading of long files, takes at most one part in so many of the time.
const LOOKING_SHARE = 5;
export const ENDED = new Set(["completed", "failed", "expired", "cancelled"]);

const START = { batch: null, requests: [], answers: new Map(), problem: null };

/** {batch, requests, answers, problem}; `answers` by custom_id. */
export function useBatch(id) {
  const [seen, setSeen] = useState(START);
  useEffect(() => {
    const leaving = new AbortController();
    const set = (change) => leaving.signal.aborted || setSeen((old) => ({ ...old, ...change }));
    setSeen(START);
    follow(id, set, leaving.signal).catch((problem) => set({ problem }));
    return () => leaving.abort();
  }, [id]);
  return seen;
}

async function follow(id, set, signal) {
  let asked = null;
  const results = new GrowingFile(signal);
  const errors = new GrowingFile(signal);
  const answers = new Map();
  while (!signal.aborted) {
    const began = performance.now();
    try {
      const batch = await get(`v1/batches/${id}`, signal);
      set({ batch, problem: null });
      if (asked === null) {
        asked = await linesOf(batch.input_file_id, signal).catch(nothingIfGone);
        set({ requests: asked.map((line) => ({ id: line.custom_id, prompt: promptOf(line) })) });
      }
      const { completed, failed } = batch.request_counts;
      const lines = [
        ...(await results.more(batch.output_file_id, completed)),
        ...(await errors.more(batch.error_file_id, failed)),
      ];
      for (const line of lines) answers.set(line.custom_id, answerOf(line));
      if (lines.length) set({ answers: new Map(answers) });
      if (ENDED.has(batch.status)) return;
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem) || !error.passing) throw error;
      set({ problem: error });
    }
    const pause = Math.max(LOOK_EVERY_MS, LOOKING_SHARE * (performance.now() - began));
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

/** A file of the API that only grows, line by line: nothing of it is read twice. */
class GrowingFile {
  constructor(signal) {
    this.signal = signal;
    this.lines = 0;
    this.bytes = 0;
  }

  /** The objects of the lines that came, where the batch says that it has so many by now. */
  async more(id, lines) {
    if (!id || lines <= this.lines) return [];
    const headers = this.bytes ? { Range: `bytes=${this.bytes}-` } : {};
    let answer;
    try {
      answer = await request("GET", `v1/files/${id}/content`, { headers, signal: this.signal });
    } catch (error) {
      if (error instanceof Problem && error.status === 416) return []; // not there yet
      throw error;
    }
    const came = await answer.arrayBuffer();
    this.bytes += came.byteLength;
    const found = objects(new TextDecoder().decode(came));
    this.lines += found.length;
    return found;
  }
}

const linesOf = async (file, signal) => objects(await textOf(file, signal));

const objects = (text) => text.split("\n").filter((line) => line.trim() !== "").flatMap(parsed);

const parsed = (line) => {
  try {
    return [parse(line)];
  } catch {
    return []; // a bad line of the input: the batch says so itself
  }
};

export async function textOf(file, signal) {
  return (await request("GET", `v1/files/${file}/content`, { signal })).text();
}

/** The input file may have been deleted; the answers are there all the same. */
function nothingIfGone(error) {
  if (error instanceof Problem && error.status === 404) return [];
  throw error;
}
