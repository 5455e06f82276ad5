// From what was pasted or dropped to lines of a batch file, as OpenAI's Batch API takes them. Pure.

export const MAX_REQUESTS = 50_000;
const CHAT = "/v1/chat/completions";
const COMPLETIONS = "/v1/completions";
const PLACE = /\{([^{}]+)\}/g;

/** {lines, endpoint, fault}: the requests, or what is wrong and where. */
export function fromPrompts(text, model, extra) {
  const prompts = text.split("\n").map((line) => line.trim()).filter(Boolean);
  return checked(prompts.map((prompt, i) => request(String(i + 1), prompt, model, extra)), model);
}

/** `rows` are objects by column; the template names columns in braces. */
export function fromTable(rows, columns, template, model, extra) {
  if (template.trim() === "") return failed("Write a template first, with columns in braces");
  for (const [, name] of template.matchAll(PLACE)) {
    if (!columns.includes(name)) return failed(`There is no column ${name}; there is ${columns.join(", ")}`);
  }
  const fill = (row) => template.replace(PLACE, (_, name) => row[name] ?? "");
  return checked(rows.map((row, i) => request(String(i + 1), fill(row), model, extra)), model);
}

/** Lines of a batch file, or objects with a `prompt` or `messages`, which become such lines. */
export function fromJsonLines(text, model, extra) {
  const lines = [];
  const ids = new Set();
  for (const [i, line] of text.split("\n").entries()) {
    if (line.trim() === "") continue;
    let found;
    try {
      found = JSON.parse(line);
    } catch {
      return failed(`Line ${i + 1} is not JSON`);
    }
    if (found === null || typeof found !== "object" || Array.isArray(found)) {
      return failed(`Line ${i + 1} is not an object`);
    }
    if (found.url === undefined) {
      if (found.prompt === undefined && found.messages === undefined) {
        return failed(`Line ${i + 1} has neither url nor prompt nor messages`);
      }
      found = wrapped(found, i + 1, model, extra);
    }
    if (ids.has(found.custom_id)) return failed(`Line ${i + 1} has the custom_id of another line`);
    ids.add(found.custom_id);
    lines.push(found);
  }
  return checked(lines, model);
}

const failed = (fault) => ({ lines: [], endpoint: null, fault });

function checked(lines, model) {
  if (model === null) return failed("No model is served here");
  if (lines.length === 0) return failed("Nothing to run yet");
  if (lines.length > MAX_REQUESTS) {
    return failed(`${lines.length.toLocaleString("en")} requests; at most 50,000 go into one batch`);
  }
  return { lines, endpoint: lines[0].url, fault: null };
}

function request(custom_id, prompt, model, extra) {
  if (model?.chat === false) {
    return line(custom_id, COMPLETIONS, { model: model.id, prompt, ...extra });
  }
  const messages = [{ role: "user", content: prompt }];
  return line(custom_id, CHAT, { model: model?.id, messages, ...extra });
}

function wrapped({ custom_id, id, prompt, messages, ...rest }, number, model, extra) {
  const name = String(custom_id ?? id ?? number);
  const more = { ...extra, ...rest };
  return messages === undefined
    ? request(name, prompt, model, more)
    : line(name, CHAT, { model: model?.id, messages, ...more });
}

const line = (custom_id, url, body) => ({ custom_id, method: "POST", url, body });

/** What a request asks, for people. */
export function promptOf({ body }) {
  if (typeof body?.prompt === "string") return body.prompt;
  const last = body?.messages?.findLast?.((message) => message.role === "user");
  if (typeof last?.content === "string") return last.content;
  return last?.content?.map((part) => part.text ?? "").join("") ?? JSON.stringify(body);
}

/** {text, error, tokens} of a line of an output or error file. */
export function answerOf({ response, error }) {
  const choice = response?.body?.choices?.[0];
  const fault = error?.message ?? response?.body?.error?.message ?? null;
  return {
    text: choice?.message?.content ?? choice?.text ?? "",
    error: fault,
    tokens: response?.body?.usage?.completion_tokens ?? null,
  };
}
