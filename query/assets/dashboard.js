// The page: what is chosen is in the URL, what is shown comes from one snapshot a second.

import { html, render, useEffect, useMemo, useState } from "./vendor/preact-htm.js";
import { Books } from "./books.js";
import { Chart, RANGES } from "./chart.js";
import { Event } from "./event.js";
import { time } from "./format.js";
import { Newest } from "./newest.js";
import { Pipeline } from "./pipeline.js";
import { Found, Search } from "./search.js";
import { remember, timeline } from "./series.js";
import { ask, follow, key } from "./source.js";
import { Locked, Start } from "./start.js";
import { Topics, Workers } from "./tables.js";

const HISTORY_MS = 10_000;
const NO_HISTORY = { minutes: [] };

const STATES = { begin: "connecting", live: "live", paused: "paused", lost: "no connection", locked: "locked" };

/** What the query string chooses; an empty topic is one too. */
function chosen() {
  const given = new URLSearchParams(location.search);
  const range = Number(given.get("range"));
  return {
    topic: given.get("topic"),
    range: RANGES.some(([minutes]) => minutes === range) ? range : RANGES[0][0],
    search: given.get("search"),
    open: given.has("event") ? [given.get("event_topic") ?? "", given.get("event")] : null,
  };
}

function address({ topic, range, search, open }) {
  const query = new URLSearchParams();
  if (topic !== null) query.set("topic", topic);
  if (range !== RANGES[0][0]) query.set("range", range);
  if (search) query.set("search", search);
  if (open) {
    query.set("event_topic", open[0]);
    query.set("event", open[1]);
  }
  const text = query.toString();
  return location.pathname + (text && `?${text}`);
}

function useChoice() {
  const [choice, setChoice] = useState(chosen);
  useEffect(() => {
    const back = () => setChoice(chosen());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  const choose = (change) =>
    setChoice((before) => {
      const next = { ...before, ...change };
      if (address(next) !== address(before)) history.pushState(null, "", address(next));
      return next;
    });
  return [choice, choose];
}

/** Snapshots as they come, and the state of the connection: [name, since when, what was said]. */
function useSnapshots(unlocked) {
  const [snapshots, setSnapshots] = useState([]);
  const [away, setAway] = useState(null);
  const [state, setState] = useState({ name: "begin" });
  useEffect(
    () =>
      follow(
        (frame) => {
          setAway(frame.away ?? null);
          if (!frame.away) setSnapshots((before) => remember(before, frame));
        },
        (name, said) =>
          setState((before) => (before.name === name && before.said === said ? before : { name, said, since: new Date() })),
      ),
    [unlocked],
  );
  return { snapshots, away, state };
}

function useHistory(range, live) {
  const [past, setPast] = useState(NO_HISTORY);
  useEffect(() => {
    if (!live) return undefined;
    const load = () =>
      ask(`/dashboard/history?minutes=${range}`)
        .then((answer) => answer.json())
        .then(setPast)
        .catch(() => {}); // the stream says what is wrong
    load();
    const timer = setInterval(load, HISTORY_MS);
    return () => clearInterval(timer);
  }, [range, live]);
  return past;
}

function Page() {
  const [unlocked, setUnlocked] = useState(0);
  const [choice, choose] = useChoice();
  const { snapshots, away, state } = useSnapshots(unlocked);
  const past = useHistory(choice.range, state.name === "live");
  const line = useMemo(() => timeline(past, snapshots, choice.range), [past, snapshots, choice.range]);
  const open = (topic, id) => choose({ open: [topic, id] });
  const last = snapshots.at(-1);
  const unlock = (secret) => {
    key.set(secret);
    setUnlocked((before) => before + 1);
  };
  return html`
    <header>
      <h1>ChronicleWeaver</h1>
      <span class=${`state ${state.name}`} role="status" data-state=${state.name}>${STATES[state.name]}</span>
      <nav aria-label="Elsewhere"><a href="/docs">API</a></nav>
      <${Search} text=${choice.search ?? ""} search=${(text) => choose({ search: text })} />
    </header>
    <main>
      ${state.name === "lost" &&
      html`<p class="notice bad" role="alert">
        The connection to the server was lost at ${time(state.since)}. Trying again every second.
        ${last && ` What stands below is of ${time(last.at)}.`}
      </p>`}
      ${state.name === "locked" && html`<${Locked} refusal=${state.said} unlock=${unlock} />`}
      ${away && html`<p class="notice bad" role="alert">${away} ${last && `What stands below is of ${time(last.at)}.`}</p>`}
      ${choice.search && state.name !== "locked" &&
      html`<${Found} id=${choice.search} open=${open} clear=${() => choose({ search: null })} />`}
      ${last && html`<${Shown} ...${{ snapshots, last, line, choice, choose, open }} />`}
    </main>
    ${choice.open && state.name !== "locked" &&
    html`<${Event} key=${choice.open.join("\n")} topic=${choice.open[0]} id=${choice.open[1]}
      close=${() => choose({ open: null })} />`}
  `;
}

function Shown({ snapshots, last, line, choice, choose, open }) {
  const topic = (name) => choose({ topic: name });
  return html`
    <${Books} snapshots=${snapshots} line=${line} />
    <${Pipeline} snapshots=${snapshots} />
    ${last.books.received === 0 && html`<${Start} />`}
    <div class="columns">
      <div>
        <${Chart} line=${line} minutes=${choice.range} choose=${(range) => choose({ range })} />
        <div class="tables">
          <${Topics} snapshot=${last} chosen=${choice.topic} choose=${topic} />
          <${Workers} snapshots=${snapshots} />
        </div>
      </div>
      <${Newest} snapshot=${last} topic=${choice.topic} choose=${topic} open=${open} />
    </div>
  `;
}

render(html`<${Page} />`, document.getElementById("page"));
