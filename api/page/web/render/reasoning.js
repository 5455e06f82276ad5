// Models that reason aloud put it before the answer, between <think> and </think>.
const OPEN = /^\s*<think>\n?/;
const CLOSE = "</think>";

/** {reasoning, answer, thinking}; `thinking` while the reasoning has not ended. */
export function split(text) {
  const opened = OPEN.exec(text);
  const end = text.indexOf(CLOSE);
  if (end >= 0 && (opened || !text.slice(0, end).includes("<think>"))) {
    return {
      reasoning: text.slice(opened ? opened[0].length : 0, end).trim(),
      answer: text.slice(end + CLOSE.length).trimStart(),
      thinking: false,
    };
  }
  if (opened) return { reasoning: text.slice(opened[0].length), answer: "", thinking: true };
  return { reasoning: "", answer: text, thinking: false };
}
