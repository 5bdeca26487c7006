/**
 * <pusa-matrix>: a timestep matrix as a heat map, with the same numbers in words and as a table.
 *
 * `show({sigma, fps, group, part})`: sigma has one row for each step and one column for each latent frame, from 0
 * (clean) to 1 (noise). part: whether it is about a part of the clip only, of which frames are then counted.
 */
import { el } from './dom.js';
import { Grid } from './timeline/grid.js';

const COLOURS = [
  [252, 242, 212],
  [237, 120, 92],
  [43, 25, 87],
]; // clean, half, noise

export class PusaMatrix extends HTMLElement {
  show({ sigma, fps, group, part = false }) {
    const columns = sigma[0].length;
    const grid = new Grid({ frames: group * (columns - 1) + 1, fps, group });
    const canvas = el('canvas', { role: 'img', 'aria-label': inWords(sigma, grid) });
    paint(canvas, sigma);
    const axis = el(
      'div',
      { className: 'axis', 'aria-hidden': 'true' },
      el('span', { textContent: 'frame 0' }),
      el('span', { textContent: `frame ${grid.frames - 1}` }),
    );
    const legend = el(
      'p',
      { className: 'legend soft' },
      'clean ',
      scale(),
      ' noise. Each column is a latent frame, and each row a step, the first at the top.',
    );
    if (part)
      legend.append(
        ' Frames are counted in the part that the model worked on: the new frames, and the given ones beside them.',
      );
    this.replaceChildren(
      canvas,
      axis,
      legend,
      el(
        'details',
        {},
        el('summary', { textContent: 'As a table' }),
        el(
          'div',
          { className: 'scroll', tabIndex: 0, role: 'group', 'aria-label': 'Table of noise levels' },
          table(sigma, grid),
        ),
      ),
    );
  }
}

function paint(canvas, sigma) {
  const [rows, columns] = [sigma.length, sigma[0].length];
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext('2d');
  const image = context.createImageData(columns, rows);
  sigma.flat().forEach((level, i) => image.data.set([...colour(level), 255], 4 * i));
  context.putImageData(image, 0, 0);
}

function colour(level) {
  const place = Math.min(1, Math.max(0, level)) * (COLOURS.length - 1);
  const low = Math.min(COLOURS.length - 2, Math.floor(place));
  return COLOURS[low].map((from, i) => Math.round(from + (COLOURS[low + 1][i] - from) * (place - low)));
}

function scale() {
  const canvas = el('canvas', { className: 'scale', 'aria-hidden': 'true' });
  paint(canvas, [[...Array(32).keys()].map((i) => i / 31)]);
  return canvas;
}

/** What a person who cannot see the map needs to know of it. */
function inWords(sigma, grid) {
  const [steps, columns] = [sigma.length - 1, sigma[0].length];
  const start = sigma[0];
  const top = Math.max(...start);
  const given = start.map((level, slot) => [level, slot]).filter(([level]) => level < top);
  const parts = given.map(([level, slot]) =>
    level === 0 ? `${grid.name(slot)} clean from the start` : `${grid.name(slot)} from ${level.toFixed(2)}`,
  );
  parts.push(`${given.length ? 'the others' : 'all'} from ${top.toFixed(2)} to 0`);
  return `Noise levels of ${columns} latent frames over ${steps} steps: ${parts.join(', ')}.`;
}

function table(sigma, grid) {
  const cell = (tag, text, scope) => el(tag, { textContent: text, ...(scope ? { scope } : {}) });
  const head = el(
    'tr',
    {},
    cell('th', 'Step', 'col'),
    ...sigma[0].map((_, slot) => cell('th', grid.name(slot), 'col')),
  );
  const rows = sigma.map((row, step) =>
    el(
      'tr',
      {},
      cell('th', step === sigma.length - 1 ? 'result' : String(step + 1), 'row'),
      ...row.map((level) => cell('td', level.toFixed(2))),
    ),
  );
  return el(
    'table',
    {},
    el('caption', { textContent: 'Noise level of each latent frame before each step' }),
    el('thead', {}, head),
    el('tbody', {}, ...rows),
  );
}

customElements.define('pusa-matrix', PusaMatrix);
