// From figures to places on an axis, and which figures to write there. Pure functions.

/** Places `low`…`high` evenly on `from`…`to`. */
export function linear(low, high, from, to) {
  const step = (to - from) / (high - low || 1);
  return Object.assign((value) => from + (value - low) * step, { low, high, isLog: false });
}

/** The same for the logarithms of figures above zero. */
export function logarithmic(low, high, from, to) {
  const place = linear(Math.log(low), Math.log(high), from, to);
  return Object.assign((value) => place(Math.log(Math.max(value, low))), { low, high, isLog: true });
}

/** Logarithmic where the figures span more than a factor of `beyond`, else linear. */
export function fitting(low, high, from, to, beyond = 12) {
  return low > 0 && high / low > beyond ? logarithmic(low, high, from, to) : linear(low, high, from, to);
}

/** About `count` round figures on a scale. */
export function ticks(scale, count) {
  return scale.isLog ? decades(scale.low, scale.high, count) : rounds(scale.low, scale.high, count);
}

function rounds(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high * (1 + 1e-12); index += 1) found.push(index * step);
  return found;
}

function decades(low, high, count) {
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    const found = powers(low, high, factors, 1);
    if (found.length <= count + 1) return found;
  }
  return powers(low, high, [1], Math.ceil(Math.log10(high / low) / count));
}

function powers(low, high, factors, every) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    if (power % every) continue;
    found.push(...factors.map((factor) => factor * 10 ** power).filter((value) => value >= low && value <= high));
  }
  return found;
}
