// TeX between $, $$, \( \) and \[ \], by KaTeX, which is loaded when the first formula comes.
const BLOCKS = [
  /^\$\$([\s\S]+?)\$\$[ \t]*(?:\n|$)/,
  /^\\\[([\s\S]+?)\\\][ \t]*(?:\n|$)/,
  /^(\\begin\{(align|equation|gather|cases|array|[bpv]?matrix)\*?\}[\s\S]+?\\end\{\2\*?\})[ \t]*(?:\n|$)/,
];
// A dollar before a digit or a space closes nothing: "$5 and $10" is about money.
const INLINE = [
  [/^\$\$([^$]+?)\$\$/, true],
  [/^\$(?!\s)((?:\\[\s\S]|[^\\$\n])+?)(?<![\s\\])\$(?![\d\w])/, false],
  [/^\\\(([\s\S]+?)\\\)/, false],
  [/^\\\[([\s\S]+?)\\\]/, true],
];
// Formulas beyond this are shown as they were written.
const MAX_CHARS = 10_000;

const placeholder = ({ text, display }) => {
  const escaped = text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  return `<span class="tex${display ? " display" : ""}">${escaped}</span>`;
};

// No commands that load or link, and no formula that grows without end.
const LIMITS = { throwOnError: true, strict: "ignore", trust: false, maxSize: 20, maxExpand: 500 };

const token = (type, found, display) => ({
  type,
  raw: found[0],
  text: found[1].trim(),
  display,
});

export const mathsExtensions = [
  {
    name: "texBlock",
    level: "block",
    start: (src) => src.match(/(?:^|\n)(?:\$\$|\\\[|\\begin\{)/)?.index,
    tokenizer(src) {
      const found = BLOCKS.map((pattern) => pattern.exec(src)).find(Boolean);
      return found && token("texBlock", found, true);
    },
    renderer: placeholder,
  },
  {
    name: "tex",
    level: "inline",
    start: (src) => src.match(/\$|\\\(|\\\[/)?.index,
    tokenizer(src) {
      for (const [pattern, display] of INLINE) {
        const found = pattern.exec(src);
        if (found) return token("tex", found, display);
      }
    },
    renderer: placeholder,
  },
];

let loading = null;

function load() {
  loading ??= import("../vendor/katex/katex.min.js").then(() => {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("../vendor/katex/katex.min.css", import.meta.url).href;
    document.head.append(style);
    return globalThis.katex;
  });
  return loading;
}

export async function finishMaths(block) {
  const found = [...block.querySelectorAll("span.tex")].filter(
    (span) => span.textContent.length <= MAX_CHARS,
  );
  if (found.length === 0) return;
  const katex = await load();
  for (const span of found) {
    const display = span.classList.contains("display");
    const tex = span.textContent;
    try {
      katex.render(tex, span, { ...LIMITS, displayMode: display });
      if (display) span.tabIndex = 0;
    } catch {
      span.textContent = tex;
      span.classList.add("unread");
      span.title = "This formula could not be read";
    }
  }
}
