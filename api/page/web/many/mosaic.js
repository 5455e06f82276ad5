// Every request of a batch as a square that fills when it is answered.
import { html, useEffect, useRef } from "../lib/html.js";

const SIDES = [14, 11, 8, 6, 4, 3, 2];
const MAX_HEIGHT = 150;

export function Mosaic({ requests, answers }) {
  const canvas = useRef(null);
  useEffect(() => {
    const drawn = () => draw(canvas.current, requests, answers);
    drawn();
    const watch = new ResizeObserver(drawn);
    watch.observe(canvas.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", drawn);
    return () => {
      watch.disconnect();
      scheme.removeEventListener("change", drawn);
    };
  }, [requests, answers]);
  return html`<canvas class="mosaic" ref=${canvas} aria-hidden="true"></canvas>`;
}

function draw(canvas, requests, answers) {
  const width = canvas.clientWidth;
  const across = (side) => Math.max(1, Math.floor((width + 1) / (side + 1)));
  const tall = (side) => Math.ceil(requests.length / across(side)) * (side + 1);
  const side = SIDES.find((one) => tall(one) <= MAX_HEIGHT) ?? SIDES.at(-1);
  const height = Math.max(side, tall(side));
  const scale = devicePixelRatio;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(canvas);
  const ink = (name) => style.getPropertyValue(name);
  const [empty, good, bad] = [ink("--line"), ink("--accent"), ink("--bad")];
  const columns = across(side);
  requests.forEach(({ id }, i) => {
    const answer = answers.get(id);
    pen.fillStyle = !answer ? empty : answer.error ? bad : good;
    pen.beginPath();
    pen.roundRect(
      (i % columns) * (side + 1),
      Math.floor(i / columns) * (side + 1),
      side,
      side,
      side > 6 ? 2 : 0,
    );
    pen.fill();
  });
}
