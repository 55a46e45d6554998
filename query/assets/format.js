// How numbers, times and payloads are written.

const whole = new Intl.NumberFormat("en");
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const milliseconds = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3,
});
const date = new Intl.DateTimeFormat("en-CA");

export const count = (number) => whole.format(number);

export function rate(number) {
  if (number === null) return "–";
  return `${number < 10 ? one.format(number) : whole.format(Math.round(number))}/s`;
}

const short = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

export const axisFigure = (number) => short.format(number);

export const share = (part, all) => (all ? `${one.format((100 * part) / all)} %` : "–");

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0995) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${one.format(seconds)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export const wait = (ms) => (ms < 1000 ? `${one.format(ms)} ms` : span(ms / 1000));

export const time = (text) => clock.format(new Date(text));

export const day = (text) => date.format(new Date(text));

export const exactClock = (text) => milliseconds.format(new Date(text));

export const exactTime = (text) => `${day(text)} ${exactClock(text)}`;

/** A number that JavaScript would not write as it was sent. */
class Exact {
  constructor(text) {
    this.text = text;
  }
}

/** JSON whose numbers keep their digits, in browsers that show a reviver the source. */
export const read = (text) =>
  JSON.parse(text, (_, value, context) =>
    typeof value === "number" && context?.source && context.source !== String(value)
      ? new Exact(context.source)
      : value,
  );

export function write(value, indent = "") {
  if (value instanceof Exact) return value.text;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}  `;
  const parts = Array.isArray(value)
    ? value.map((each) => inner + write(each, inner))
    : Object.entries(value).map(([key, each]) => `${inner}${JSON.stringify(key)}: ${write(each, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return parts.length ? `${open}\n${parts.join(",\n")}\n${indent}${close}` : open + close;
}

/** Where two payloads differ: [path, in the one, in the other], undefined where it is missing. */
export function differences(one, other, path = "") {
  const nested = [one, other].every((each) => each !== null && typeof each === "object" && !(each instanceof Exact));
  if (!nested || Array.isArray(one) !== Array.isArray(other)) {
    return same(one, other) ? [] : [[path, one, other]];
  }
  const keys = [...new Set([...Object.keys(one), ...Object.keys(other)])];
  return keys.flatMap((key) => differences(own(one, key), own(other, key), path ? `${path}.${key}` : key));
}

const own = (object, key) => (Object.hasOwn(object, key) ? object[key] : undefined);

const same = (one, other) => {
  if (one === undefined || other === undefined) return one === other;
  return [one, other].every(isNumber) ? plain(one) === plain(other) : write(one) === write(other);
};

const isNumber = (value) => value instanceof Exact || typeof value === "number";

/** A number as PostgreSQL compares it: 1.0 is 1, 1e2 is 100, and -0 is 0. */
function plain(number) {
  const [, sign, whole, fraction = "", exponent = "0"] = /^(-?)(\d+)(?:\.(\d+))?(?:e([+-]?\d+))?$/i.exec(write(number));
  const digits = (whole + fraction).replace(/0+$/, "");
  const figures = digits.replace(/^0+/, "");
  return figures ? `${sign}${figures} ${Number(exponent) + whole.length - digits.length}` : "0";
}
