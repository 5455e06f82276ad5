// The HTTP API as the page uses it: JSON calls, and event streams read by fetch, which can carry the key.
import { key, keyNeeded } from "./key.js";

const AGAIN_MS = 1000;
const AGAIN_MAX_MS = 15000;

/** An answer that is no success. `field` names what was wrong in the request, if anything was. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? body.error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = body.code ?? body.error?.code ?? "";
    this.field = body.errors?.[0]?.field ?? body.error?.param ?? null;
    this.retryAfterS = body.retry_after_s ?? null;
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** Relative to the page, so that a prefix in front of it does no harm. */
export const address = (path) => new URL(path, document.baseURI.split("#")[0]).href;

/** A JSON answer, with numbers that JavaScript cannot hold kept as text. */
export const parse = (text) =>
  JSON.parse(text, (_, value, context) =>
    typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value)
      ? (context?.source ?? value)
      : value,
  );

/** An integer for JSON that may be larger than JavaScript's own. */
export const integer = (digits) =>
  Number.isSafeInteger(Number(digits)) || !JSON.rawJSON ? Number(digits) : JSON.rawJSON(digits);

export async function request(method, path, { body, headers = {}, signal } = {}) {
  const own = { ...headers };
  if (key()) own.Authorization = `Bearer ${key()}`;
  if (body !== undefined && !(body instanceof FormData)) {
    own["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(address(path), { method, body, headers: own, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "the server cannot be reached" });
  }
  if (answer.ok) return answer;
  const problem = new Problem(answer.status, await answer.json().catch(() => ({})));
  if (problem.status === 401) keyNeeded();
  throw problem;
}

export const call = async (method, path, options) =>
  parse(await (await request(method, path, options)).text());

export const get = (path, signal) => call("GET", path, { signal });

/**
 * The events of a stream, as {type, data}. It connects again after a break and goes on after the last
 * event, until `last` says that one was the last, the signal is set, or the server refuses.
 */
export async function* events(path, { signal, last = () => false, onBreak = () => {} }) {
  let after = null;
  let pause = AGAIN_MS;
  while (!signal.aborted) {
    try {
      const headers = after === null ? {} : { "Last-Event-ID": after };
      const answer = await request("GET", path, { headers, signal });
      for await (const event of read(answer.body)) {
        pause = AGAIN_MS;
        if (event.id !== null) after = event.id;
        yield event;
        if (last(event)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && !error.passing) throw error;
      onBreak(error);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, AGAIN_MAX_MS);
  }
}

/** Server-sent events out of a body. */
async function* read(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = decode(block);
        if (event !== null) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function decode(block) {
  const found = { id: null, type: "message", data: null };
  for (const line of block.split("\n")) {
    if (line.startsWith("id: ")) found.id = line.slice(4);
    else if (line.startsWith("event: ")) found.type = line.slice(7);
    else if (line.startsWith("data: ")) found.data = parse(line.slice(6));
  }
  return found.data === null ? null : found;
}
