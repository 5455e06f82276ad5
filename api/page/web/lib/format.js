// Numbers and times as people read them.
const number = new Intl.NumberFormat("en");

export const count = (n) => number.format(n);

export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/** Three digits that mean something: 4 ms, 310 ms, 1.24 s, 12.4 s, 3 min 20 s. */
export function duration(ms) {
  if (ms < 1) return "under 1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(2)} s`;
  if (s < 60) return `${s.toFixed(1)} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(s % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const rate = (perS) =>
  perS >= 100 ? count(Math.round(perS)) : perS >= 10 ? perS.toFixed(1) : perS.toFixed(2);

export const clock = (ms) =>
  new Date(ms).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
