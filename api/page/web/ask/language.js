// A guess whether a text is English; only good enough for a hint.
const OTHER_SCRIPT =
  /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\p{Script=Cyrillic}\p{Script=Arabic}\p{Script=Hebrew}\p{Script=Devanagari}\p{Script=Thai}\p{Script=Greek}\p{Script=Bengali}\p{Script=Tamil}]/gu;
const LETTER = /\p{L}/gu;
const WORDS = {
  en: "the and is of to in that what how why which with for are does this was it can you a an write",
  de: "der die das und ist nicht wie was warum ein eine mit für auf den von sind wird bitte ich",
  fr: "le la les et est des une que qui pourquoi comment dans pour avec pas quelle sont du je est-ce",
  es: "el los las y es una que por qué cómo para con cuál son del está se un en de la",
  it: "il gli è una che perché come per con quale sono della non di un nel",
  pt: "o os é uma que por como para com qual são não do da em um",
  nl: "de het een en is niet van wat hoe waarom met voor zijn op dat",
};
const NAMES = { de: "German", fr: "French", es: "Spanish", it: "Italian", pt: "Portuguese", nl: "Dutch" };
const known = Object.entries(WORDS).map(([tag, words]) => [tag, new Set(words.split(" "))]);

/** Null if it may be English, else what it seems to be: "German", "another script". */
export function otherThanEnglish(text) {
  const letters = text.match(LETTER)?.length ?? 0;
  const other = text.match(OTHER_SCRIPT)?.length ?? 0;
  if (letters >= 2 && other / letters > 0.3) return "another script";
  const words = text.toLowerCase().match(/[\p{L}'-]+/gu) ?? [];
  if (words.length < 4) return null;
  const scores = known.map(([tag, set]) => [tag, words.filter((word) => set.has(word)).length]);
  const [tag, score] = scores.reduce((best, one) => (one[1] > best[1] ? one : best));
  return tag !== "en" && score >= 2 ? NAMES[tag] : null;
}
