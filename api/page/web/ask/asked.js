// The questions that were asked in this browser, newest first: jobs do not give their prompt back.
import { key } from "../lib/key.js";

const NAME = "millpond.asked";
const MAX = 20;

// With a key, the questions go with it when the tab is closed.
const store = () => (key() ? sessionStorage : localStorage);

export function asked() {
  try {
    return JSON.parse(store().getItem(NAME)) ?? [];
  } catch {
    return [];
  }
}

export function remember(entry) {
  const all = [entry, ...asked().filter((one) => one.id !== entry.id)].slice(0, MAX);
  try {
    store().setItem(NAME, JSON.stringify(all));
  } catch {
    // The store is full or closed: the page works without it.
  }
}

export const question = (id) => asked().find((one) => one.id === id) ?? null;

export function forget() {
  localStorage.removeItem(NAME);
  sessionStorage.removeItem(NAME);
}
