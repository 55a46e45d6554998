// What is counted over time: the minutes that the server kept, and the seconds since this page began to watch.

export const BOOKS = ["received", "unique", "duplicates", "conflicts", "failed"];
const RATE_SECONDS = 5;
const KEPT_SECONDS = 150;

/** Snapshots of the last minutes, oldest first, with one more. A counter that went back begins anew (`reset`). */
export function remember(snapshots, next) {
  const last = snapshots.at(-1);
  const before = last && next.books.received >= last.books.received ? snapshots : [];
  return [...before, next].filter((each) => seconds(each) > seconds(next) - KEPT_SECONDS);
}

export const seconds = (snapshot) => Date.parse(snapshot.at) / 1000;

/** How fast a counter grows, by the last few seconds; null where there is only one snapshot. `get` reads the counter. */
export function rateOf(snapshots, get) {
  const last = snapshots.at(-1);
  const from = snapshots.find((each) => seconds(each) >= seconds(last) - RATE_SECONDS - 0.5);
  const [before, now] = [get(from), get(last)];
  if (from === last || before === undefined || now === undefined) return null;
  return Math.max(0, now - before) / (seconds(last) - seconds(from));
}

/**
 * Rates over time, one list a column, `time` in seconds first: whole minutes of `history`, then what was seen since.
 * Minutes in which nobody looked leave a gap.
 */
export function timeline(history, snapshots, minutes) {
  const columns = { time: [] };
  for (const name of [...BOOKS, "in_flight"]) columns[name] = [];
  const put = (time, value) => {
    columns.time.push(time);
    for (const name of [...BOOKS, "in_flight"]) columns[name].push(value(name));
  };
  const now = snapshots.length ? seconds(snapshots.at(-1)) : Date.now() / 1000;
  const begins = history.minutes.map((minute) => Date.parse(minute) / 1000);
  let end = now - minutes * 60;
  for (let at = 1; at < begins.length && begins[at] + 60 <= now; at += 1) {
    const took = begins[at] - begins[at - 1];
    if (begins[at] < end - 60) continue;
    if (took > 90) put(begins[at] - 60, () => null);
    put(begins[at] + 30, (name) => (name === "in_flight" ? history[name][at] : history[name][at] / took));
    end = begins[at] + 60;
  }
  for (let at = 1; at < snapshots.length; at += 1) {
    const [before, after] = [snapshots[Math.max(0, at - RATE_SECONDS)], snapshots[at]];
    const took = seconds(after) - seconds(before);
    if (seconds(before) < end) continue;
    put(seconds(after), (name) =>
      name === "in_flight" ? after.books[name] : Math.max(0, after.books[name] - before.books[name]) / took,
    );
  }
  return columns;
}
