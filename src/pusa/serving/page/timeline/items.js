/**
 * What lies on the timeline: pictures and clips at their latent frames, and the rules for their places.
 *
 * An item is {key, source, kind, slot, count, start, noise, atEnd, frame}: `slot` and `count` are latent frames,
 * `start` is the first frame that is used of a clip, and `noise` has one number from 0 (exact) to 1 for each latent
 * frame. An item with `atEnd` keeps to the end of the clip when its length changes. `frame` is the exact frame of a
 * picture that was loaded from elsewhere; moving the picture forgets it. `loaded` is the condition that an item was
 * made from, if it was; its fields that the timeline does not show are kept.
 *
 * A source is {name, kind, src, frames, thumbs}: `frames` is the length of a clip at the model's rate, or null where it
 * is unknown. `src` is what a request names it by; nothing here looks into it.
 *
 * Every function returns new items and throws `Refusal` with one sentence where something does not fit.
 */
export class Refusal extends Error {}

let keys = 0;

/** The item that holds one of `count` slots from `slot` on, other than `except`. */
export function holder(items, slot, count, except = null) {
  return items.find((one) => one.key !== except && one.slot < slot + count && slot < one.slot + one.count);
}

/**
 * Where something new goes: the first slot, then the last one, then the middle of the longest gap; null if all is
 * full.
 */
export function freeSlot(items, grid) {
  const free = (slot) => !holder(items, slot, 1);
  if (free(0)) return 0;
  if (free(grid.last)) return grid.last;
  const gaps = [];
  for (let slot = 0; slot < grid.slots; slot += 1) {
    if (!free(slot)) continue;
    if (slot > 0 && free(slot - 1)) gaps.at(-1).length += 1;
    else gaps.push({ slot, length: 1 });
  }
  gaps.sort((a, b) => b.length - a.length || a.slot - b.slot);
  return gaps.length ? gaps[0].slot + Math.floor((gaps[0].length - 1) / 2) : null;
}

/** How many slots a clip can fill at `slot`: limited by its frames, the end of the clip, and the next item. */
export function room(items, grid, item, slot) {
  const after = items.filter((one) => one.key !== item.key && one.slot > slot).map((one) => one.slot);
  const free = Math.min(grid.slots, ...after) - slot;
  if (item.kind === 'image') return Math.min(1, free);
  const frames = item.source.frames === null ? Infinity : item.source.frames - item.start;
  return Math.min(free, frames === Infinity ? free : grid.slotsFilled(slot, frames));
}

/** A new item for a source. A clip fills at most half of the timeline, so that something is left to make. */
export function placed(items, grid, source, slot) {
  const at = slot ?? freeSlot(items, grid);
  if (at === null)
    throw new Refusal(`There is no free place for ${source.name}: remove something, or make a longer clip.`);
  refuseTaken(items, grid, source.name, at, 1);
  const item = {
    key: `item-${++keys}`,
    source,
    kind: source.kind,
    slot: at,
    count: 1,
    start: 0,
    noise: [0],
    atEnd: false,
  };
  item.atEnd = at === grid.last && at > 0;
  const fits = room(items, grid, item, at);
  if (fits < 1) {
    throw new Refusal(
      `${source.name} has ${source.frames} frames, and ${grid.name(at)} needs ${grid.framesIn(at, 1)}: ` +
        'give a longer clip, or put it at frame 0.',
    );
  }
  return resized(item, item.kind === 'image' ? 1 : Math.min(fits, Math.max(1, Math.floor(grid.slots / 2))));
}

/** The item at another slot; `exact` refuses a taken place, otherwise the next free place in that direction is used. */
export function moved(items, grid, item, slot, exact) {
  const step = Math.sign(slot - item.slot) || 1;
  let target = slot;
  if (!exact) {
    while (target >= 0 && target < grid.slots && holder(items, target, 1, item.key)) target += step;
    if (target < 0 || target >= grid.slots) {
      throw new Refusal(`${item.source.name} cannot move further: there is no free place in this direction.`);
    }
  }
  target = Math.max(0, Math.min(grid.last, target));
  refuseTaken(items, grid, item.source.name, target, 1, item.key);
  const fits = room(items, grid, item, target);
  if (fits < 1) {
    throw new Refusal(
      `${item.source.name} has too few frames for ${grid.name(target)}, which needs ${grid.framesIn(target, 1)}.`,
    );
  }
  const changed = resized(item, Math.min(item.count, fits));
  return { ...changed, slot: target, frame: undefined, atEnd: target > 0 && target + changed.count === grid.slots };
}

/** The clip with another number of slots; its noise keeps its ends and is a straight ramp between them. */
export function resized(item, count) {
  if (count === item.count) return item;
  return { ...item, count, noise: ramp(item.noise[0], item.noise.at(-1), count) };
}

/** The item held with this noise; `end` is "first", "last" or "both". */
export function held(item, noise, end = 'both') {
  const level = Math.round(Math.min(1, Math.max(0, noise)) * 100) / 100;
  const first = end === 'last' ? item.noise[0] : level;
  const last = end === 'first' ? item.noise.at(-1) : level;
  return { ...item, noise: ramp(first, last, item.count) };
}

/** The items in a clip of another length. */
export function inGrid(items, grid) {
  return items.map((item) => {
    const slot = item.atEnd ? grid.slots - item.count : item.slot;
    const kept = { ...item, slot, frame: slot === item.slot ? item.frame : undefined };
    if (
      slot < 0 ||
      slot + item.count > grid.slots ||
      holder(
        items.filter((one) => !one.atEnd),
        slot,
        item.count,
        item.key,
      )
    ) {
      throw new Refusal(
        `${item.source.name} would be outside this length: move or remove it, or make the clip longer.`,
      );
    }
    return kept;
  });
}

/** A condition of a request as an item. */
export function fromCondition(items, grid, condition, source) {
  const kind = condition.type;
  const item = {
    key: `item-${++keys}`,
    source,
    kind,
    slot: 0,
    count: 1,
    start: 0,
    noise: [0],
    atEnd: false,
    loaded: condition,
  };
  const place = kind === 'image' ? (condition.frame ?? 0) : (condition.at ?? 0);
  const frame = grid.frameOf(place);
  if (frame === null) throw new Refusal(`${source.name} is at ${place}, outside the clip: make the clip longer.`);
  if (kind === 'image') {
    Object.assign(item, { slot: grid.slotOf(frame), noise: [condition.noise ?? 0], frame });
  } else {
    Object.assign(item, clipPlace(grid, condition, source, frame));
  }
  item.atEnd = item.slot > 0 && item.slot + item.count === grid.slots;
  refuseTaken(items, grid, source.name, item.slot, item.count);
  return item;
}

/** An item as a condition of a request. */
export function toCondition(item, grid) {
  const noise = item.noise.every((one) => one === item.noise[0]) ? item.noise[0] : item.noise;
  if (item.kind === 'image') {
    return {
      ...item.loaded,
      type: 'image',
      src: item.source.src,
      frame: item.frame ?? grid.pictureFrame(item.slot),
      noise,
    };
  }
  const frames = grid.framesIn(item.slot, item.count);
  return {
    ...item.loaded,
    type: 'clip',
    src: item.source.src,
    at: grid.first(item.slot),
    frames,
    start: item.start,
    noise,
  };
}

/** A word for how firmly something is held, for its noise. */
export function firmness(noise) {
  if (noise === 0) return 'exact';
  if (noise <= 0.4) return 'close';
  return noise < 1 ? 'loose' : 'not held';
}

/** "frame 8, 1.0 s, exact" */
export function description(item, grid) {
  const [first, last] = [firmness(item.noise[0]), firmness(item.noise.at(-1))];
  const held = first === last ? first : `${first} to ${last}`;
  const frame = item.kind === 'image' ? (item.frame ?? grid.pictureFrame(item.slot)) : grid.first(item.slot);
  const place = item.kind === 'image' ? `frame ${frame}` : grid.name(item.slot, item.count);
  return `${place}, ${grid.seconds(frame)}, ${held}`;
}

function clipPlace(grid, condition, source, frame) {
  const start = condition.start ?? 0;
  const length = source.frames;
  let first =
    typeof start === 'string' && start.endsWith('s') ? Math.round(parseFloat(start) * grid.fps) : Number(start);
  if (first < 0 && length !== null) first += length;
  const frames = condition.frames ?? (length === null ? grid.framesIn(0, 1) : length - first);
  const at = String(condition.at ?? 0)
    .trim()
    .startsWith('-')
    ? frame - frames + 1
    : frame;
  const slot = grid.slotOf(at);
  const count = grid.slotsFilled(slot, frames);
  if (at < 0 || count < 1 || slot + count > grid.slots) {
    throw new Refusal(`${source.name} does not fit at ${condition.at}: make the clip longer.`);
  }
  const levels = [condition.noise ?? 0].flat();
  const noise = levels.length === count ? levels : ramp(levels[0], levels.at(-1), count);
  return { slot, count, start: first, noise };
}

function refuseTaken(items, grid, name, slot, count, except = null) {
  const other = holder(items, slot, count, except);
  if (!other) return;
  throw new Refusal(
    `${name} and ${other.source.name} would share ${grid.name(slot)}: one latent frame holds one thing. ` +
      `Move ${other.source.name} first, or choose another place.`,
  );
}

function ramp(first, last, count) {
  if (count === 1) return [first];
  return [...Array(count).keys()].map((i) => Math.round((first + ((last - first) * i) / (count - 1)) * 1000) / 1000);
}
