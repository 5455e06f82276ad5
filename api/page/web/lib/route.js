// Where we are: the fragment of the address, as #/VIEW/ID. Nothing secret ever stands there.
import { useEffect, useState } from "./html.js";

const VIEWS = ["ask", "many", "queue"];

function read() {
  const [view, id] = location.hash.replace(/^#\/?/, "").split("/");
  return { view: VIEWS.includes(view) ? view : "ask", id: id ? decodeURIComponent(id) : null };
}

export const link = (view, id) => `#/${view}${id ? `/${encodeURIComponent(id)}` : ""}`;

export function go(view, id) {
  location.hash = link(view, id);
}

export function useRoute() {
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const changed = () => setRoute(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}
