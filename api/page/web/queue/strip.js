// The batch of each worker, drawn: a strip for each slot, a bar for each row, now at the right edge.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { count, plural } from "../lib/format.js";
import { KEPT_MS } from "./slotbook.js";

const HEIGHT = 224;
const FRAME_MS = 50;
const CALM_FRAME_MS = 1000;
// A narrower bar has no room for rounded corners.
const ROUNDED_FROM = 6;
// From this height on, a bar has room for words.
const WORDS_FROM = 13;

export function Batch({ batches, workers }) {
  const alive = workers.filter((worker) => worker.alive);
  return html`
    <header class="section">
      <h2>The batch, slot by slot</h2>
      <ul class="legend">
        <li><i class="reading"></i>reading its prompt</li>
        <li><i class="writing"></i>writing</li>
        <li><i class="ended"></i>ended</li>
      </ul>
    </header>
    ${
      alive.length === 0
        ? html`<p class="nothing">No worker is alive, so nothing runs. Jobs wait until one is.</p>`
        : alive.map(
            (worker) => html`<${Strip} key=${worker.id} worker=${worker} book=${batches.get(worker.id)} />`,
          )
    }
    <p class="hint">
      Each line is a slot. A row leaves its slot the moment it ends, and the next one enters at the next
      step: nobody waits for the longest.
    </p>
  `;
}

function Strip({ worker, book }) {
  const canvas = useRef(null);
  const held = useRef(book);
  held.current = book;
  const [words, setWords] = useState("");

  useEffect(() => {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const pace = calm ? CALM_FRAME_MS : FRAME_MS;
    const drawing = setInterval(() => {
      if (held.current && canvas.current) draw(canvas.current, held.current, performance.now());
    }, pace);
    const telling = setInterval(() => held.current && setWords(inWords(held.current)), 1000);
    return () => {
      clearInterval(drawing);
      clearInterval(telling);
    };
  }, []);

  return html`
    <figure class="strip">
      <figcaption>
        <b>${worker.id}</b>
        <span>${words || (worker.state === "ready" ? "looking" : worker.state)}</span>
      </figcaption>
      <canvas ref=${canvas} role="img" aria-label=${`Slots of ${worker.id}: ${words}`}></canvas>
    </figure>
  `;
}

function inWords(book) {
  const now = performance.now();
  const reading = book.rows.filter((row) => row.tokens === 0).length;
  const ended = book.endedWithin(10_000, now);
  if (book.rows.length + book.waiting + ended === 0) return `idle, ${plural(book.slots, "slot")}`;
  return [
    `${count(book.rows.length)} of ${plural(book.slots, "slot")} taken`,
    reading ? `${reading} reading` : "",
    `${plural(ended, "row")} ended in 10 s`,
    book.waiting ? `${plural(book.waiting, "job")} claimed ahead` : "",
  ]
    .filter(Boolean)
    .join(", ");
}

function draw(canvas, book, now) {
  const scale = devicePixelRatio;
  const width = canvas.clientWidth;
  if (canvas.width !== Math.round(width * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = HEIGHT * scale;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, HEIGHT);
  const style = getComputedStyle(canvas);
  const ink = Object.fromEntries(
    ["--sunken", "--accent", "--on-accent", "--reading", "--ended", "--ink", "--soft"].map((name) => [
      name,
      style.getPropertyValue(name),
    ]),
  );
  const shown = book.shown;
  // On whole pixels of the screen, or thin strips would be blurred.
  const edge = (slot) => Math.round((slot / shown) * HEIGHT * scale) / scale;
  const x = (time) => width - ((now - time) / KEPT_MS) * width;
  for (let slot = 0; slot < shown; slot++) {
    const y = edge(slot);
    const tall = edge(slot + 1) - y - 1 / (shown > 32 ? scale : 1);
    pen.fillStyle = ink["--sunken"];
    pen.fillRect(0, y, width, tall);
    for (const bar of book.strips[slot] ?? []) drawBar(pen, ink, bar, x, y, tall, now);
  }
  if (book.strips.length === 0) {
    pen.fillStyle = ink["--soft"];
    pen.font = "14px Inter, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText("Nothing ran in the last half minute", width / 2, HEIGHT / 2);
    pen.textAlign = "start";
  }
}

function drawBar(pen, ink, bar, x, y, tall, now) {
  const end = x(bar.to ?? now);
  const begin = Math.max(0, x(bar.from));
  const wrote = bar.wrote === null ? end : Math.max(begin, x(bar.wrote));
  if (end <= 0) return;
  const wide = Math.max(2, end - begin - (bar.to === null ? 0 : 1.5));
  const body = bar.to === null ? ink["--accent"] : ink["--ended"];
  if (wide < ROUNDED_FROM) {
    pen.fillStyle = bar.wrote === null ? ink["--reading"] : body;
    pen.fillRect(begin, y, wide, tall);
    return;
  }
  pen.save();
  pen.beginPath();
  pen.roundRect(begin, y, wide, tall, Math.min(4, tall / 2));
  pen.clip();
  pen.fillStyle = ink["--reading"];
  pen.fillRect(begin, y, wrote - begin, tall);
  pen.fillStyle = body;
  pen.fillRect(wrote, y, Math.max(0, end - wrote), tall);
  if (tall >= WORDS_FROM && end - wrote > 64) {
    pen.fillStyle = bar.to === null ? ink["--on-accent"] : ink["--ink"];
    pen.font = `500 ${Math.min(11, tall - 3)}px Inter, sans-serif`;
    pen.textBaseline = "middle";
    pen.fillText(`${bar.job.slice(0, 6)}  ${bar.tokens}`, wrote + 6, y + tall / 2 + 0.5);
  }
  pen.restore();
}
