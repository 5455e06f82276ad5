// Code blocks: the language's name, a button that copies, colours by highlight.js when the block is whole.
const MAX_HIGHLIGHTED_CHARS = 50_000;

let loading = null;
const load = () => (loading ??= import("../vendor/highlight/highlight.min.js"));

export function finishCode(block, settled, sanitized) {
  for (const pre of block.querySelectorAll("pre")) {
    const code = pre.firstElementChild;
    const language = [...(code?.classList ?? [])]
      .find((name) => name.startsWith("language-"))
      ?.slice("language-".length);
    const frame = document.createElement("figure");
    frame.className = "code";
    const head = document.createElement("figcaption");
    const name = document.createElement("span");
    name.textContent = language ?? "text";
    head.append(name, copyButton(() => pre.textContent));
    pre.replaceWith(frame);
    pre.tabIndex = 0;
    frame.append(head, pre);
    if (settled && language && pre.textContent.length <= MAX_HIGHLIGHTED_CHARS) {
      highlight(code, language, sanitized);
    }
  }
}

async function highlight(code, language, sanitized) {
  const { default: hljs } = await load();
  if (!hljs.getLanguage(language)) return;
  const { value } = hljs.highlight(code.textContent, { language, ignoreIllegals: true });
  code.replaceChildren(sanitized(value));
}

export function copyButton(text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Select and copy by hand";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

/** Browsers give the clipboard to pages of https and of this machine only. */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
