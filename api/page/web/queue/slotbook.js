// Which row was in which slot, and for how long: the last half minute of one worker's batch.
export const KEPT_MS = 30_000;

const name = (row) => `${row.job}/${row.index}`;

/** A row takes the lowest free strip, as it takes a slot, and keeps it until it ends. */
export class SlotBook {
  constructor() {
    this.slots = 0;
    this.waiting = 0;
    this.rows = [];
    this.strips = []; // for each strip its bars, oldest first
    this.bars = new Map(); // name of a row -> its bar
    this.running = new Set(); // names of rows that were there the last time
  }

  /** What the worker published, at this time. */
  take({ slots, waiting, rows, ended = [] }, now) {
    this.slots = slots;
    this.waiting = waiting;
    this.rows = rows;
    for (const row of ended) this.#end(row, now);
    const there = new Set(rows.map(name));
    for (const key of this.running) {
      if (!there.has(key)) {
        this.bars.get(key).to ??= now;
        this.running.delete(key);
      }
    }
    for (const row of rows) {
      const key = name(row);
      const bar = this.running.has(key) ? this.bars.get(key) : this.#enter(row, now);
      this.running.add(key);
      if (bar.wrote === null && row.tokens > 0) bar.wrote = now;
      bar.tokens = row.tokens;
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

  /** A row of a job that ended between two messages; it may have been in none of them. */
  #end(row, now) {
    const to = now - row.ended_ms_ago;
    const from = to - row.ran_ms;
    const bar = this.bars.get(name(row)) ?? this.#enter(row, from);
    if (bar.to !== null) return; // one of several rows of its job, which ended earlier
    if (row.first_token_ms !== undefined) bar.wrote ??= Math.min(to, bar.from + row.first_token_ms);
    bar.to = Math.max(bar.from, to);
    bar.tokens = row.tokens;
    this.running.delete(name(row));
  }

  #enter(row, from) {
    const bars = this.strips[this.#free(from)];
    // Clocks and messages are not exact: no bar begins before the one to its left has ended.
    const bar = { job: row.job, key: name(row), from: Math.max(from, bars.at(-1)?.to ?? 0), wrote: null, to: null, tokens: 0 };
    bars.push(bar);
    this.bars.set(bar.key, bar);
    return bar;
  }

  /** The lowest strip that is free from then on, else a new one; if there is one for each slot, the one
   * that was left first. */
  #free(from) {
    const left = this.strips.map((bars) => (bars.length ? (bars.at(-1).to ?? Infinity) : -Infinity));
    const free = left.findIndex((to) => to <= from);
    if (free !== -1) return free;
    const first = left.indexOf(Math.min(...left));
    if (left[first] < Infinity && this.strips.length >= this.slots) return first;
    return this.strips.push([]) - 1;
  }

  #forget(before) {
    for (const bars of this.strips) {
      while (bars.length && bars[0].to !== null && bars[0].to < before) {
        const { key } = bars.shift();
        if (!this.running.has(key)) this.bars.delete(key);
      }
    }
    while (this.strips.length && !this.strips.at(-1).length) this.strips.pop();
  }
}
