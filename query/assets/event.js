// One event: its payload and its trail, with the waits, and what is different where a payload differs.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { count, day, differences, exactClock, exactTime, read, wait, write } from "./format.js";
import { ask } from "./source.js";
import { named } from "./tables.js";

const AGAIN_MS = 1_000;

const OUTCOMES = { PROCESSED: "Stored", FAILED: "Failed", null: "In flight" };

/** Asks for the trail of an event; again while some of it is in flight. */
function useTrail(topic, id) {
  const [answer, setAnswer] = useState({});
  useEffect(() => {
    let again = null;
    let left = false;
    const load = () =>
      ask(`/events/${encodeURIComponent(topic)}/${encodeURIComponent(id)}/trail`)
        .then((response) => response.text())
        .then((text) => {
          const trail = read(text);
          if (left) return;
          setAnswer({ trail });
          if (trail.sightings.some((each) => each.outcome === null)) again = setTimeout(load, AGAIN_MS);
        })
        .catch((error) => left || setAnswer({ error: error.message }));
    const nameless = [topic, id].find((name) => name === "." || name === "..");
    setAnswer(nameless ? { error: `A browser cannot ask for the name ${nameless}; other clients can.` } : {});
    if (!nameless) load();
    return () => {
      left = true;
      clearTimeout(again);
    };
  }, [topic, id]);
  return answer;
}

export function Event({ topic, id, close }) {
  const dialog = useRef(null);
  const { trail, error } = useTrail(topic, id);
  useEffect(() => dialog.current.showModal(), []);
  const [first] = trail?.sightings ?? [];
  return html`
    <dialog ref=${dialog} aria-labelledby="event-id" onClose=${close}
      onClick=${(click) => click.target === dialog.current && dialog.current.close()}>
      <div class="event">
        <div class="bar">
          <h2 id="event-id">${id}</h2>
          <button type="button" onClick=${() => dialog.current.close()}>Close</button>
        </div>
        ${error && html`<p class="wrong" role="alert">${error}</p>`}
        ${!error && !trail && html`<p class="quiet">…</p>`}
        ${first && html`<${Whole} topic=${topic} first=${first} trail=${trail} />`}
      </div>
    </dialog>
  `;
}

function Whole({ topic, first, trail }) {
  const { sightings, count: all } = trail;
  return html`
    <dl class="facts">
      <dt>Topic</dt><dd>${named(topic)}</dd>
      <dt>Source</dt><dd>${first.source}</dd>
      <dt>Timestamp</dt><dd title=${first.timestamp}>${exactTime(first.timestamp)}</dd>
    </dl>
    <h3>Payload</h3>
    <pre tabindex="0">${write(first.payload)}</pre>
    <h3>
      Trail <span class="quiet">${all === 1 ? "seen once" : `seen ${count(all)} times`}${
        sightings.length < all ? `, ${sightings.length} shown` : ""
      }</span>
    </h3>
    ${sightings.map((each) => html`<${Sighting} sighting=${each} stored=${first} />`)}
  `;
}

function Sighting({ sighting, stored }) {
  const reason = sighting.facts.at(-1).reason;
  const what = sighting.outcome === "DROPPED" ? (reason === "conflict" ? "Conflict" : "Duplicate") : OUTCOMES[sighting.outcome];
  return html`
    <div class="sighting">
      <h3 class=${sighting.outcome === "FAILED" ? "wrong" : ""}>
        ${what} <span class="quiet">${day(sighting.facts[0].recorded_at)}</span>
      </h3>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              <th scope="col">Fact</th>
              <th scope="col">Time</th>
              <th scope="col" class="figure">Waited</th>
              <th scope="col" class="figure">Worker</th>
            </tr>
          </thead>
          <tbody>
            ${sighting.facts.map(
              (fact) => html`
                <tr>
                  <td>${fact.action}${fact.attempt > 0 && html` <span class="quiet">attempt ${fact.attempt + 1}</span>`}</td>
                  <td title=${fact.recorded_at}>${exactClock(fact.recorded_at)}</td>
                  <td class="figure">${fact.waited_ms === null ? "" : `+${wait(fact.waited_ms)}`}</td>
                  <td class="figure">${fact.worker_id ?? ""}</td>
                </tr>
                ${fact.action === "FAILED" && html`<tr><td colspan="4" class="reason wrong">${fact.reason}</td></tr>`}
              `,
            )}
          </tbody>
        </table>
      </div>
      <p class="quiet">
        From ${sighting.source}${sighting.request_id && html`, request <span class="id">${sighting.request_id}</span>`},
        batch <span class="id">${sighting.batch_id}</span>, position ${sighting.position}
      </p>
      ${what === "Conflict" && stored.outcome === "PROCESSED" && html`<${Difference} sighting=${sighting} stored=${stored} />`}
    </div>
  `;
}

function Difference({ sighting, stored }) {
  if (sighting.payload === null || stored.payload === null) return html`<p class="quiet">Payloads end here: they would be too many bytes to show.</p>`;
  const shown = (value) => (value === undefined ? html`<span class="quiet">not there</span>` : write(value));
  return html`
    <div class="scroll">
      <table class="difference">
        <thead>
          <tr><th scope="col">Differs in</th><th scope="col">Stored</th><th scope="col">Here</th></tr>
        </thead>
        <tbody>
          ${differences(stored.payload, sighting.payload).map(
            ([path, one, other]) => html`<tr><td>${path}</td><td>${shown(one)}</td><td>${shown(other)}</td></tr>`,
          )}
        </tbody>
      </table>
    </div>
  `;
}
