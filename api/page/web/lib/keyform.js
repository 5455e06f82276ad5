// Asks for an API key. It stays in this tab's session storage.
import { html, useState } from "./html.js";
import { setKey } from "./key.js";

export function KeyForm({ refused, onKey }) {
  const [value, setValue] = useState("");
  const use = (event) => {
    event.preventDefault();
    if (value.trim() === "") return;
    setKey(value.trim());
    onKey();
  };
  return html`
    <form class="keyform" onSubmit=${use}>
      <h2>This server asks for an API key</h2>
      <p>It is kept in this tab only, and is gone when you close it.</p>
      <div class="bar">
        <label class="unseen" for="key">API key</label>
        <input
          id="key"
          type="password"
          autocomplete="off"
          spellcheck=${false}
          placeholder="mp_…"
          value=${value}
          onInput=${(event) => setValue(event.target.value)}
        />
        <button class="primary" type="submit">Use it</button>
      </div>
      ${refused && html`<p class="notice bad" role="alert">The server does not take this key.</p>`}
    </form>
  `;
}
