// The last ten minutes: throughput, what waits and runs, latency.
import { html, useEffect, useRef, useState } from "../lib/html.js";
import { count, duration, rate } from "../lib/format.js";
import uPlot from "../vendor/uplot/uPlot.esm.js";

const HEIGHT = 150;

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("../vendor/uplot/uPlot.min.css", import.meta.url).href;
document.head.append(style);

const CHARTS = [
  {
    title: "Throughput",
    series: [{ name: "tokens a second", of: "tokens_per_s", color: "--accent", fill: "--tint" }],
    say: rate,
  },
  {
    title: "Jobs",
    series: [
      { name: "waiting", of: "queued", color: "--warm" },
      { name: "running", of: "running", color: "--accent" },
    ],
    say: count,
  },
  {
    title: "Latency",
    series: [
      { name: "median", of: "latency_p50_ms", color: "--accent" },
      { name: "90th percentile", of: "latency_p90_ms", color: "--warm" },
      { name: "median wait", of: "wait_p50_ms", color: "--soft", dash: [4, 4] },
    ],
    say: duration,
  },
];

export function Charts({ history }) {
  const dark = useDark();
  return html`
    <section class="charts" aria-label="The last ten minutes">
      ${CHARTS.map((chart) => html`<${Chart} key=${`${chart.title}${dark}`} chart=${chart} history=${history} />`)}
    </section>
  `;
}

function Chart({ chart, history }) {
  const place = useRef(null);
  const plot = useRef(null);

  useEffect(() => {
    const made = new uPlot(options(chart, place.current), columns(chart, history), place.current);
    plot.current = made;
    const resized = new ResizeObserver(([entry]) =>
      made.setSize({ width: Math.floor(entry.contentRect.width), height: HEIGHT }),
    );
    resized.observe(place.current);
    return () => {
      resized.disconnect();
      made.destroy();
    };
  }, []);
  useEffect(() => plot.current?.setData(columns(chart, history)), [history]);

  const last = history.at(-1);
  const latest = chart.series.map(({ name, of, color }) => {
    const value = last?.[of];
    return { name, color, value: value === null || value === undefined ? "–" : chart.say(value) };
  });
  return html`
    <figure class="chart">
      <figcaption>
        <h3>${chart.title}</h3>
        <ul class="legend">
          ${latest.map(
            ({ name, color, value }) => html`<li key=${name}>
              <i class=${color.slice(2)}></i>${name} <b>${value}</b>
            </li>`,
          )}
        </ul>
      </figcaption>
      <div
        ref=${place}
        role="img"
        aria-label=${`${chart.title}: ${latest.map((one) => `${one.name} ${one.value}`).join(", ")}`}
      ></div>
    </figure>
  `;
}

const columns = ({ series }, history) => [
  history.map((moment) => moment.at_ms / 1000),
  ...series.map(({ of }) => history.map((moment) => moment[of] ?? null)),
];

function options({ series, say }, place) {
  const own = getComputedStyle(place);
  const color = (name) => own.getPropertyValue(name).trim();
  const axis = {
    stroke: color("--soft"),
    font: "11px Inter, sans-serif",
    grid: { stroke: color("--line"), width: 1 },
    ticks: { show: false },
  };
  return {
    width: Math.max(200, place.clientWidth),
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, 4, 0, 0],
    scales: { x: { time: true }, y: { range: (_, __, most) => [0, Math.max(1, most * 1.15)] } },
    axes: [
      { ...axis, grid: { show: false }, size: 24, space: 70, values: timesOfDay },
      { ...axis, size: 54, space: 34, values: (_, values) => values.map((v) => (v === 0 ? "0" : short(v, say))) },
    ],
    series: [
      {},
      ...series.map(({ color: name, fill, dash }) => ({
        stroke: color(name),
        fill: fill && color(fill),
        dash,
        width: 1.75,
        points: { show: false },
        spanGaps: false,
      })),
    ],
  };
}

/** With seconds where the marks are closer than a minute. */
const timesOfDay = (_plot, times, _axis, _space, step_s) =>
  times.map((s) =>
    new Date(s * 1000).toLocaleTimeString("en-GB", {
      hour: "2-digit",
      minute: "2-digit",
      ...(step_s < 60 ? { second: "2-digit" } : {}),
    }),
  );

const short = (value, say) =>
  say === duration ? say(value).replace(/(\.\d*?)0+ s$/, "$1 s").replace(". s", " s") : value >= 1000 ? `${value / 1000}k` : String(value);

function useDark() {
  const query = matchMedia("(prefers-color-scheme: dark)");
  const [dark, setDark] = useState(query.matches);
  useEffect(() => {
    const changed = () => setDark(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  return dark;
}
