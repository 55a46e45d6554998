// Throughput over time, drawn by uPlot.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { axisFigure, rate, time } from "./format.js";

export const RANGES = [
  [15, "15 min"],
  [60, "1 h"],
  [360, "6 h"],
  [1440, "24 h"],
];
const HEIGHT = 210;
const STYLES = {
  received: { color: "accent", width: 2, fill: "wash" },
  unique: { color: "ink", width: 1.25 },
  duplicates: { color: "quiet", width: 1.25, dash: [4, 3] },
  failed: { color: "wrong", width: 1.5 },
};
const dark = matchMedia("(prefers-color-scheme: dark)");

/** The lines that there are: failures only where something failed. */
const drawn = (line) => Object.keys(STYLES).filter((name) => name !== "failed" || line.failed.some((each) => each > 0));

export function Chart({ line, minutes, choose }) {
  return html`
    <section aria-label="Throughput">
      <div class="bar">
        <h2>Throughput <span class="quiet">events/s</span></h2>
        <div class="legend">${drawn(line).map((name) => html`<span class=${name}>${name}</span>`)}</div>
        <div class="end" role="group" aria-label="Range">
          ${RANGES.map(
            ([each, label]) => html`
              <button type="button" aria-pressed=${String(each === minutes)} onClick=${() => choose(each)}>${label}</button>
            `,
          )}
        </div>
      </div>
      <${Plot} key=${drawn(line).length} line=${line} minutes=${minutes} />
    </section>
  `;
}

function Plot({ line, minutes }) {
  const place = useRef(null);
  const plot = useRef(null);
  const latest = useRef(null);
  const [tip, setTip] = useState(null);
  latest.current = { data: [line.time, ...drawn(line).map((name) => line[name])], minutes };

  useEffect(() => {
    const make = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(place.current, latest, drawn(line), setTip), latest.current.data, place.current);
    };
    make();
    const resized = new ResizeObserver(() =>
      plot.current.setSize({ width: place.current.clientWidth, height: HEIGHT }),
    );
    resized.observe(place.current);
    dark.addEventListener("change", make);
    return () => {
      resized.disconnect();
      dark.removeEventListener("change", make);
      plot.current.destroy();
    };
  }, []);

  useEffect(() => plot.current.setData(latest.current.data), [line]);

  return html`
    <div class="chart" ref=${place} role="img" aria-label=${`Events a second in the last ${minutes} minutes`}>
      ${tip && html`<p class="tip">${tip}</p>`}
    </div>
  `;
}

function options(place, latest, names, setTip) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const grid = { stroke: color("rule"), width: 1 };
  const axis = { stroke: color("quiet"), grid, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return {
    width: place.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: {
      x: {
        range: () => {
          const end = latest.current.data[0].at(-1) ?? Date.now() / 1000; // by the clock of the server
          return [end - latest.current.minutes * 60, end];
        },
      },
      y: { range: () => [0, 1.08 * Math.max(1, ...latest.current.data.slice(1).flat())] },
    },
    axes: [
      { ...axis, size: 28, values: (_, moments) => moments.map((moment) => time(moment * 1000).slice(0, 5)), space: 64 },
      { ...axis, size: 56, values: (_, rates) => rates.map(axisFigure) },
    ],
    series: [
      {},
      ...names.map((name) => {
        const { color: stroke, fill, ...line } = STYLES[name];
        return { ...line, stroke: color(stroke), fill: fill && color(fill), points: { show: false } };
      }),
    ],
    hooks: { setCursor: [(plot) => setTip(under(plot, names))] },
  };
}

function under(plot, names) {
  const at = plot.cursor.idx;
  if (at === null || at === undefined || plot.data[1][at] === null) return null;
  const figures = names.map((name, column) => `${rate(plot.data[column + 1][at])} ${name}`);
  return `${time(plot.data[0][at] * 1000)}  ${figures.join(" · ")}`;
}
