// Topics and workers.

import { html } from "./vendor/preact-htm.js";
import { count, rate, share, span } from "./format.js";
import { rateOf, seconds } from "./series.js";

export const named = (topic) => (topic === "" ? "(empty)" : topic);

export function Topics({ snapshot, chosen, choose }) {
  const { topics, topic_count: all } = snapshot;
  return html`
    <section aria-label="Topics">
      <div class="bar">
        <h2>Topics</h2>
        <span class="quiet">${topics.length < all ? `the ${topics.length} largest of ${count(all)}` : count(all)}</span>
      </div>
      <div class="scroll tall" tabindex="0" role="group" aria-label="Topics, scrollable">
        <table>
          <thead>
            <tr>
              <th scope="col">Topic</th>
              <th scope="col" class="figure">Events</th>
              <th scope="col" class="figure">Unique</th>
              <th scope="col" class="figure">Dupl.</th>
              <th scope="col" class="figure" title="how long ago the last event came">Seen</th>
            </tr>
          </thead>
          <tbody>
            ${topics.map(
              (each) => html`
                <tr key=${each.topic} aria-selected=${String(each.topic === chosen)}>
                  <td>
                    <button type="button" class="plain name" title=${named(each.topic)}
                      onClick=${() => choose(each.topic === chosen ? null : each.topic)}>${named(each.topic)}</button>
                  </td>
                  <td class="figure">${count(each.received)}</td>
                  <td class="figure">${count(each.unique)}</td>
                  <td class="figure">${share(each.duplicates + each.conflicts, each.received)}</td>
                  <td class="figure">${ago(each.last_seen, snapshot)}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    </section>
  `;
}

function ago(moment, snapshot) {
  if (moment === null) return "–";
  const passed = Math.max(0, seconds(snapshot) - Date.parse(moment) / 1000);
  return passed < 2 ? "now" : span(passed);
}

export function Workers({ snapshots }) {
  const { workers } = snapshots.at(-1);
  const projected = (id) => (each) => each.workers.find((worker) => worker.worker_id === id)?.projected;
  return html`
    <section aria-label="Workers">
      <div class="bar"><h2>Workers</h2><span class="quiet">${workers.length || "none has reported"}</span></div>
      <div class="scroll tall" tabindex="0" role="group" aria-label="Workers, scrollable">
        <table>
          <thead>
            <tr>
              <th scope="col">Worker</th>
              <th scope="col">State</th>
              <th scope="col" class="figure">Rate</th>
              <th scope="col" class="figure" title="how long ago it last projected one">Last batch</th>
              <th scope="col" class="figure">Pending</th>
            </tr>
          </thead>
          <tbody>
            ${workers.map(
              (each) => html`
                <tr key=${each.worker_id} class=${each.silent ? "wrong" : ""} title=${each.process}>
                  <td>${each.worker_id}</td>
                  <td>${each.silent ? `silent for ${span(each.silent_seconds)}` : each.state}</td>
                  <td class="figure">${rate(rateOf(snapshots, projected(each.worker_id)))}</td>
                  <td class="figure">${span(each.projected_seconds)}</td>
                  <td class="figure">${each.pending === null ? "–" : count(each.pending)}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    </section>
  `;
}
