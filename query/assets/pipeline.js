// The way of an event as boxes: how fast each works, what waits before it, and why it is stuck.

import { html } from "./vendor/preact-htm.js";
import { count, rate, span } from "./format.js";
import { rateOf } from "./series.js";

const plural = (number, one) => `${count(number)} ${one}${number === 1 ? "" : one.endsWith("ch") ? "es" : "s"}`;

/** The boxes of a snapshot: name, figure, what it says below, and why it is stuck (null where it is not). */
export function boxes(snapshots) {
  const now = snapshots.at(-1);
  const { books, outbox, unsequenced, queue, workers } = now;
  const fast = (get) => rate(rateOf(snapshots, get));
  const outcomes = (each) => each.books.received - each.books.in_flight;
  const alive = workers.filter((worker) => !worker.silent);
  const idle = books.in_flight === 0;
  return [
    ["HTTP", fast((each) => each.books.received), "POST /publish", null],
    ["Ledger", count(books.received), "events received", null],
    [
      "Outbox",
      plural(outbox.batches, "batch"),
      outbox.batches ? `${plural(outbox.events, "event")}, oldest ${span(outbox.oldest_seconds)}` : "nothing waits",
      outbox.late ? `the oldest batch has waited for ${span(outbox.oldest_seconds)}` : null,
    ],
    [
      "Stream",
      queue.away ? "–" : plural(queue.length, "ticket"),
      queue.away ? "" : `${count(queue.pending)} taken by workers`,
      queue.away,
    ],
    [
      "Workers",
      fast(outcomes),
      `${alive.length} of ${workers.length} at work`,
      alive.length ? null : "no worker gives a sign of life",
    ],
    [
      "Read models",
      count(books.unique),
      idle ? "up to date" : `${plural(books.in_flight, "event")} behind`,
      unsequenced.late ? `subscribers wait: no place in the stream for ${span(unsequenced.oldest_seconds)}` : null,
    ],
  ];
}

export function Pipeline({ snapshots }) {
  return html`
    <section aria-label="Pipeline">
      <ol class="pipeline">
        ${boxes(snapshots).map(
          ([name, figure, below, stuck]) => html`
            <li class=${stuck ? "stuck" : ""} data-box=${name}>
              <h2>${name}</h2>
              <p class="big">${figure}</p>
              <p class="quiet">${stuck ?? below}</p>
            </li>
          `,
        )}
      </ol>
    </section>
  `;
}
