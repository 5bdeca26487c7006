/**
 * Orders for `POST /v1/videos`, from what the server stored of a clip and from recipe files (sidecars).
 *
 * All three use the field names of `pusa.Generate`, `pusa.Extend` and `pusa.Transition`. They differ in how they name
 * sources, and a recipe holds what made the clip besides.
 */
const RECORDED = [
  'version',
  'model',
  'loras',
  'versions',
  'processes',
  'result',
  'request',
  'own_matrix',
  'variant_of',
  'acceleration',
];
const USUAL = { guidance_batch: 'auto', solver: 'euler', fit: 'crop', negative_prompt: '', direction: 'forward' };
const CONDITION = ['type', 'src', 'frame', 'noise', 'encoding', 'at', 'frames', 'start', 'rate'];

/** The order that makes a stored clip again. Its sources are named by the clip that used them. */
export function again(video) {
  const order = withSources(video.request, (src) => ('source' in src ? { source: src.source, of: video.id } : src));
  const lora = video.lora?.length ? { lora: video.lora } : {};
  return { ...order, ...lora, model: video.model, seed: video.seed };
}

/** The order that a recipe file describes. Its sources become {missing: NAME}: a recipe holds no pictures. */
export function fromRecipe(recipe) {
  if (!recipe || typeof recipe !== 'object' || !('prompt' in recipe)) {
    throw new Error('This file is no recipe of a clip: choose the .json file that was saved with one.');
  }
  const unused = [
    ...RECORDED,
    ...(recipe.own_matrix ? ['shift', 'schedule'] : ['matrix']),
    ...(recipe.init ? [] : ['strength']),
  ];
  const said = Object.entries(recipe).filter(([key, value]) => !unused.includes(key) && value !== USUAL[key]);
  return withSources(Object.fromEntries(said), (src) => ({
    missing: String(src.path ?? src.source ?? src.video)
      .split(/[\\/]/)
      .at(-1),
  }));
}

function withSources(stored, named) {
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
