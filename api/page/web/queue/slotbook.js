// Which row was in which slot, and for how long: the last half minute of one worker's batch.
export const KEPT_MS = 30_000;

const name = (row) => `${row.job}/${row.index}`;

/** A row takes the lowest free strip, as it takes a slot, and keeps it until it ends. */
export class SlotBook {
  constructor() {
    this.slots = 0;
    this.waiting = 0;
    this.rows = [];
    this.ended = 0;
    this.strips = []; // for each strip its bars, oldest first
    this.running = new Map(); // name of a row -> its bar
  }

  /** What the worker published, at this time. */
  take({ slots, waiting, rows, jobs_total }, now) {
    this.slots = slots;
    this.waiting = waiting;
    this.rows = rows;
    this.ended = jobs_total;
    const there = new Set(rows.map(name));
    for (const [key, bar] of this.running) {
      if (!there.has(key)) {
        bar.to = now;
        this.running.delete(key);
      }
    }
    for (const row of rows) {
      const bar = this.running.get(name(row)) ?? this.#enter(row, now);
      if (bar.wrote === null && row.tokens > 0) bar.wrote = now;
      bar.tokens = row.tokens;
      bar.most = row.max_tokens;
    }
    this.#forget(now - KEPT_MS);
  }

  /** So many strips show everything of late: at least eight, a power of two. */
  get shown() {
    let highest = 0;
    this.strips.forEach((bars, i) => {
      if (bars.length) highest = i + 1;
    });
    let shown = 8;
    while (shown < highest) shown *= 2;
    return Math.max(1, this.slots ? Math.min(shown, this.slots) : shown);
  }

  /** Rows that ended within the last so many milliseconds. */
  endedWithin(ms, now) {
    return this.strips.flat().filter((bar) => bar.to !== null && bar.to > now - ms).length;
  }

  #enter(row, now) {
    const free = this.strips.findIndex((bars) => !bars.length || bars.at(-1).to !== null);
    const strip = free === -1 ? this.strips.push([]) - 1 : free;
    const bar = { job: row.job, from: now, wrote: null, to: null, tokens: 0, most: 0 };
    this.strips[strip].push(bar);
    this.running.set(name(row), bar);
    return bar;
  }

  #forget(before) {
    for (const bars of this.strips) {
      while (bars.length && bars[0].to !== null && bars[0].to < before) bars.shift();
    }
    while (this.strips.length && !this.strips.at(-1).length) this.strips.pop();
  }
}
