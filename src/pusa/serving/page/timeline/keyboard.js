/** What the keys do on the timeline, for the handle of a place and for the handles of firmness. */
const STEP = 0.1; // of firmness

/**
 * What a key does, or null. `end` is the handle of firmness that has the focus ("both", "first", "last"), or undefined
 * for the handle of the place.
 * @param {{hold, move, longer, remove}} actions hold(noise, end), move(slot, exact), longer(slots), remove()
 */
export function keyAction(event, item, grid, end, actions) {
  if (event.ctrlKey || event.altKey || event.metaKey) return null;
  const noise = end === 'last' ? item.noise.at(-1) : item.noise[0];
  const firmer = (by) => () => actions.hold(noise - by, end ?? 'both');
  const place = {
    ArrowLeft: () => actions.move(item.slot - 1, false),
    ArrowRight: () => actions.move(item.slot + 1, false),
  };
  const ends = { Home: () => actions.move(0, true), End: () => actions.move(grid.slots - item.count, true) };
  const used = { ArrowLeft: () => actions.longer(-1), ArrowRight: () => actions.longer(1) };
  const level = { ArrowLeft: firmer(-STEP), ArrowRight: firmer(STEP), Home: firmer(-1), End: firmer(1) };
  const always = { ArrowUp: firmer(STEP), ArrowDown: firmer(-STEP), Delete: actions.remove, Backspace: actions.remove };
  const along = event.shiftKey && item.kind === 'clip' ? { ...ends, ...used } : { ...ends, ...place };
  return { ...always, ...(end ? level : along) }[event.key] ?? null;
}
