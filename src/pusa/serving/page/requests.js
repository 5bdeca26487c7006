/**
 * Orders for `POST /v1/videos`, from what the server stored of a clip.
 *
 * Both use the field names of `pusa.Generate`, `pusa.Extend` and `pusa.Transition`, as recipes do (see recipe.js). They
 * differ in how they name sources.
 */
const CONDITION = ['type', 'src', 'frame', 'noise', 'encoding', 'at', 'frames', 'start', 'rate'];

/** The order that makes a stored clip again. Its sources are named by the clip that used them. */
export function again(video) {
  const order = withSources(video.request, (src) => ('source' in src ? { source: src.source, of: video.id } : src));
  const lora = video.lora?.length ? { lora: video.lora } : {};
  return { ...order, ...lora, model: video.model, seed: video.seed };
}

/** An order, or what was stored of one, with `named(source)` in place of each of its sources. */
export function withSources(stored, named) {
  const source = (value) => named(typeof value === 'object' ? value : { path: value });
  const condition = (one) => {
    const kept = Object.entries({ ...one, src: source(one.src ?? one) });
    return Object.fromEntries(kept.filter(([key, value]) => CONDITION.includes(key) && value !== null));
  };
  const order = Object.fromEntries(
    Object.entries(stored).filter(([key, value]) => key !== 'version' && value !== null),
  );
  if (order.conditions) order.conditions = order.conditions.map(condition);
  if (order.init) order.init = { ...condition({ type: 'clip', ...order.init }), noise: undefined };
  for (const name of ['clip', 'a', 'b']) if (name in order) order[name] = source(order[name]);
  if (Array.isArray(order.size)) order.size = order.size.join('x');
  return order;
}
