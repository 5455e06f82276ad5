// Results as files.
import { textOf } from "./batch.js";

function save(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** The lines as the API has them, errors behind results. */
export async function saveJsonLines(batch) {
  const files = [batch.output_file_id, batch.error_file_id].filter(Boolean);
  const texts = await Promise.all(files.map((file) => textOf(file)));
  save(texts.join(""), `${batch.id}.jsonl`, "application/jsonl");
}

export async function saveTable(batch, requests, answers) {
  await import("../vendor/papaparse/papaparse.min.js");
  const rows = requests.map(({ id, prompt }) => {
    const answer = answers.get(id);
    return { custom_id: id, prompt, answer: answer?.text ?? "", error: answer?.error ?? "" };
  });
  // What a spreadsheet would take for a formula stays text.
  save(globalThis.Papa.unparse(rows, { escapeFormulae: true }), `${batch.id}.csv`, "text/csv");
}
