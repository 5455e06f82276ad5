// The API key, where the server asks for one. It lives in sessionStorage: in this tab, never in an address.
const NAME = "millpond.key";
const listeners = new Set();

export const key = () => sessionStorage.getItem(NAME);

export function setKey(value) {
  if (value === null) sessionStorage.removeItem(NAME);
  else sessionStorage.setItem(NAME, value);
}

/** Called when a request was refused for want of a good key. Returns a function that stops it. */
export function onKeyNeeded(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export const keyNeeded = () => listeners.forEach((listener) => listener());
