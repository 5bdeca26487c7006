/** Orders that differ in one or two settings, and the table in which their clips are compared. */

/** The settings that can be compared for the form as it stands, for `askGrid`: the first two are the usual ones. */
export function axes(composer) {
  const { num_inference_steps: steps, guidance_scale: guidance } = composer.model.defaults;
  const order = composer.order();
  const level = { min: 0, max: 1 };
  return {
    ...(order.conditions || 'noise' in order
      ? { noise: { ...level, label: 'Noise on what is given', short: 'noise', values: '0, 0.2, 0.4' } }
      : {}),
    ...(order.init
      ? { strength: { min: 0.05, max: 1, label: 'How much may change', short: 'change', values: '0.4, 0.6, 0.8' } }
      : {}),
    ...(order.lora
      ? { lora: { min: -4, max: 4, label: 'Strength of the LoRA', short: 'LoRA', values: '0.8, 1, 1.2' } }
      : {}),
    guidance: {
      min: 0,
      max: 100,
      label: 'Guidance by the words',
      short: 'guidance',
      values: [...new Set([1, guidance, 2 * guidance])].join(', '),
    },
    steps: {
      min: 1,
      max: 1000,
      whole: true,
      label: 'Steps',
      short: 'steps',
      values: [...new Set([Math.ceil(steps / 2), steps])].join(', '),
    },
  };
}

/**
 * The orders of all pairs of values. axes: [rows, columns], each {name, short, values} or null for a single row. Seeds
 * are given as {count}: that many from the seed of the order on.
 * @returns {{title: string, rows: string[], columns: string[], orders: object[][]}}
 */
export function variants(order, axes) {
  const [rows, columns] = axes.map(
    (axis) => axis && { ...axis, values: axis.values ?? [...Array(axis.count).keys()].map((i) => order.seed + i) },
  );
  const change = (given, axis, value) => (axis ? changed(given, axis.name, value) : given);
  const named = (axis) => (axis ? axis.values.map((value) => `${axis.short} ${value}`) : ['']);
  const orders = (rows?.values ?? [null]).map((row) =>
    columns.values.map((column) => change(change(order, rows, row), columns, column)),
  );
  const title = [rows, columns]
    .filter(Boolean)
    .map((axis) => axis.short)
    .join(' × ');
  return { title: `Compare ${title}`, rows: named(rows), columns: named(columns), orders };
}

function changed(order, name, value) {
  if (name === 'noise' && order.conditions)
    return { ...order, conditions: order.conditions.map((one) => ({ ...one, noise: value })) };
  if (name === 'lora') return { ...order, lora: [{ ...order.lora[0], scale: value }, ...order.lora.slice(1)] };
  return { ...order, [name]: value };
}
