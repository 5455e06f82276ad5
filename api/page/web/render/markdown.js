// What a model writes, as elements: Markdown and TeX, never the HTML that it may contain.
import { Marked } from "../vendor/marked/marked.esm.js";
import DOMPurify from "../vendor/dompurify/purify.es.mjs";
import { finishCode } from "./code.js";
import { finishMaths, mathsExtensions } from "./maths.js";

const escapes = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
export const escape = (text) => text.replace(/[&<>"]/g, (c) => escapes[c]);

const marked = new Marked({
  gfm: true,
  extensions: mathsExtensions,
  renderer: {
    // Shown as it was written.
    html: ({ text }) => escape(text),
    // Nothing is fetched from where a model says.
    image: ({ href, text }) => escape(`![${text}](${href})`),
    // The page has headings of its own above these.
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

// The second line of defence: what the renderers above make, and nothing more.
const ALLOWED = {
  ALLOWED_TAGS: [
    ...["p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong"],
    ...["del", "a", "br", "hr", "table", "thead", "tbody", "tr", "th", "td", "span", "input"],
  ],
  ALLOWED_ATTR: ["href", "title", "align", "start", "class", "type", "checked", "disabled"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  // Their values are no addresses.
  ADD_URI_SAFE_ATTR: ["type", "start", "align"],
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const sanitized = (html) => DOMPurify.sanitize(html, ALLOWED);

/**
 * Shows the text in the element. Called again with a longer text it changes only the blocks that differ,
 * so that a selection survives while an answer grows. `ended`: the text is whole.
 */
export function show(element, text, { ended }) {
  const blocks = marked.lexer(text).filter((token) => token.type !== "space");
  blocks.forEach((block, i) => {
    const settled = ended || i < blocks.length - 1;
    const mark = `${settled}${block.raw}`;
    const old = element.children[i];
    if (old?.shown === mark) return;
    const made = document.createElement("div");
    made.className = "block";
    made.shown = mark;
    made.append(sanitized(marked.parser([block])));
    finish(made, settled);
    if (old) old.replaceWith(made);
    else element.append(made);
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}

function finish(block, settled) {
  for (const link of block.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of block.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "wide";
    frame.tabIndex = 0;
    frame.role = "region";
    frame.ariaLabel = "Table";
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const box of block.querySelectorAll("input")) box.ariaLabel = "Done";
  finishCode(block, settled, sanitized);
  finishMaths(block);
}
