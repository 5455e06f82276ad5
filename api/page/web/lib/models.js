// The models that are served, looked up now and then.
import { Problem, get } from "./api.js";
import { useEffect, useState } from "./html.js";

const EVERY_MS = 5000;

/** {models, problem, again}; `models` is null until they are known. */
export function useModels() {
  const [found, setFound] = useState({ models: null, problem: null });
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const leaving = new AbortController();
    let timer = null;
    const look = async () => {
      let again = true;
      try {
        const { data } = await get("v1/models", leaving.signal);
        setFound({ models: data, problem: null });
      } catch (problem) {
        if (leaving.signal.aborted) return;
        again = problem instanceof Problem && problem.passing;
        setFound((old) => ({ ...old, problem }));
      }
      if (again) timer = setTimeout(look, EVERY_MS);
    };
    look();
    return () => {
      leaving.abort();
      clearTimeout(timer);
    };
  }, [turn]);
  return { ...found, again: () => setTurn((n) => n + 1) };
}
