// The page: its head, its three views, and the key where one is asked for.
import { html, render, useEffect, useState } from "./lib/html.js";
import { key, onKeyNeeded, setKey } from "./lib/key.js";
import { KeyForm } from "./lib/keyform.js";
import { useModels } from "./lib/models.js";
import { link, useRoute } from "./lib/route.js";
import { Ask } from "./ask/view.js";

const VIEWS = { ask: "Ask", many: "Many at once", queue: "Queue" };
// The others are loaded when they are opened.
const LATER = {
  many: () => import("./many/view.js").then((module) => module.Many),
  queue: () => import("./queue/view.js").then((module) => module.Queue),
};

function Page() {
  const { view, id } = useRoute();
  const { models, problem, again } = useModels();
  const [keyNeeded, setKeyNeeded] = useState(false);
  const [refused, setRefused] = useState(false);
  const View = useView(view);

  useEffect(
    () =>
      onKeyNeeded(() => {
        setRefused(key() !== null);
        setKey(null);
        setKeyNeeded(true);
      }),
    [],
  );
  useEffect(() => {
    document.title = `${VIEWS[view]} · Millpond`;
  }, [view]);

  const useKey = () => {
    setKeyNeeded(false);
    again();
  };
  const forgetKey = () => {
    setKey(null);
    setRefused(false);
    setKeyNeeded(true);
  };

  return html`
    <header class="top">
      <a class="brand" href=${link("ask")}><${Mark} />Millpond</a>
      <nav aria-label="Views">
        ${Object.entries(VIEWS).map(
          ([name, title]) => html`<a
            key=${name}
            href=${link(name)}
            aria-current=${name === view ? "page" : null}
            >${title}</a
          >`,
        )}
      </nav>
      <div class="aside">
        ${key() && html`<button type="button" class="quiet" onClick=${forgetKey}>Forget key</button>`}
        <a href="docs">API</a>
      </div>
    </header>
    <main id="main">
      ${
        problem &&
        !keyNeeded &&
        html`<p class="notice bad" role="alert">The models cannot be listed: ${problem.message}</p>`
      }
      ${
        keyNeeded
          ? html`<${KeyForm} refused=${refused} onKey=${useKey} />`
          : View && html`<${View} id=${id} models=${models} keyMissing=${keyNeeded} />`
      }
    </main>
  `;
}

function useView(view) {
  const [loaded, setLoaded] = useState({ ask: Ask });
  useEffect(() => {
    if (!loaded[view]) LATER[view]().then((found) => setLoaded((old) => ({ ...old, [view]: found })));
  }, [view]);
  return loaded[view] ?? null;
}

const Mark = () => html`
  <svg viewBox="0 0 24 24" aria-hidden="true" class="mark">
    <path d="M3 8c3 0 3 2 6 2s3-2 6-2 3 2 6 2" />
    <path d="M3 13c3 0 3 2 6 2s3-2 6-2 3 2 6 2" />
    <path d="M3 18c3 0 3 2 6 2s3-2 6-2 3 2 6 2" />
  </svg>
`;

const place = document.getElementById("app");
place.replaceChildren();
render(html`<${Page} />`, place);
