// The books: each figure with its rate and a small history, and whether they balance.

import { html } from "./vendor/preact-htm.js";
import { count, rate, share } from "./format.js";
import { rateOf } from "./series.js";

const MOST_POINTS = 90;

const FIGURES = [
  ["received", "Received"],
  ["unique", "Unique"],
  ["duplicates", "Duplicates"],
  ["conflicts", "Conflicts"],
  ["failed", "Failed"],
  ["in_flight", "In flight"],
];

export function Books({ snapshots, line }) {
  const { books } = snapshots.at(-1);
  return html`
    <section aria-label="Books">
      <dl class="books">
        ${FIGURES.map(
          ([name, label]) => html`
            <div class=${name === "failed" && books.failed ? "wrong" : ""} data-figure=${name}>
              <dt>
                <span>${label}</span>
                ${name === "duplicates" && html`<span>${share(books.duplicates, books.received)}</span>`}
              </dt>
              <dd class="number">${count(books[name])}</dd>
              <dd class="rate">
                ${name === "in_flight" ? "now" : rate(rateOf(snapshots, (each) => each.books[name]))}
              </dd>
              <dd aria-hidden="true"><${Sparkline} times=${line.time} values=${line[name]} /></dd>
            </div>
          `,
        )}
      </dl>
      <${Balance} books=${books} />
    </section>
  `;
}

function Balance({ books }) {
  const parts = [
    [books.unique, "unique"],
    [books.duplicates, "duplicates"],
    [books.conflicts, "conflicts"],
    [books.failed, "failed"],
    [books.in_flight - books.off_by, "in flight"],
  ];
  const sum = parts.map(([number, what]) => `${count(number)} ${what}`).join(" + ");
  const off = Math.abs(books.off_by);
  return html`
    <p class=${`balance ${off ? "off" : ""}`} role="status">
      <strong>${off ? `The books are off by ${count(off)}.` : "The books balance."}</strong>${" "}
      ${count(books.received)} received ${off ? "≠" : "="} ${sum}
    </p>
  `;
}

function Sparkline({ times, values }) {
  const step = Math.ceil(values.length / MOST_POINTS);
  const shown = times.map((time, at) => [time, values[at] ?? 0]).filter((_, at) => (times.length - 1 - at) % step === 0);
  const top = Math.max(...shown.map(([, value]) => value), 1e-9);
  const [from, to] = [times[0], times.at(-1)];
  const points = shown.map(([time, value]) => `${(100 * (time - from)) / (to - from)},${19 - (18 * value) / top}`);
  return html`
    <svg viewBox="0 0 100 20" preserveAspectRatio="none">
      ${shown.length > 1 &&
      html`<polyline points=${points.join(" ")} fill="none" stroke="currentColor" stroke-width="1.5"
        vector-effect="non-scaling-stroke" stroke-linejoin="round" />`}
    </svg>
  `;
}
