/** Orders that differ in one or two settings, and the table in which their clips are compared. */

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
