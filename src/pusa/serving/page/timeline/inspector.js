/** The panel under the timeline: the selected item in words, and its settings as ordinary controls. */
import { button, el } from '../dom.js';
import { description, firmness } from './items.js';

export class Inspector {
  /**
   * @param {{hold: (noise, end) => void, length: (count) => void, start: (frame) => void, remove: () => void}} actions
   */
  constructor(actions) {
    this.actions = actions;
    this.element = el('div', {
      className: 'inspector',
      role: 'group',
      'aria-label': 'The selected picture or clip',
      hidden: true,
    });
    this.key = null;
  }

  /** Show an item, or nothing. room: how many latent frames it can fill. */
  show(item, grid, room) {
    this.element.hidden = !item;
    if (!item) this.key = null;
    if (!item) return;
    if (this.key !== item.key) this.#build(item);
    this.key = item.key;
    this.summary.textContent = `${item.source.name}: ${description(item, grid)}`;
    const levels = { both: item.noise[0], first: item.noise[0], last: item.noise.at(-1) };
    for (const [end, { input, output }] of Object.entries(this.levels)) {
      const firm = Math.round(100 * (1 - levels[end]));
      input.value = firm;
      output.textContent = `${firmness(levels[end])}, ${firm} %`;
      input.setAttribute('aria-valuetext', output.textContent);
    }
    if (item.kind === 'clip') this.#showClip(item, grid, room);
  }

  #showClip(item, grid, room) {
    const used = grid.framesIn(item.slot, item.count);
    const { length, start } = this;
    length.input.max = Math.max(room, item.count);
    length.input.value = item.count;
    length.output.textContent = `${used} frames, ${(used / grid.fps).toFixed(1)} s`;
    const all = item.source.frames;
    start.row.hidden = all === null || all <= used;
    start.input.max = Math.max(0, (all ?? 0) - used);
    start.input.value = item.start;
    start.output.textContent = `from frame ${item.start} of ${all}`;
    for (const each of [length, start]) each.input.setAttribute('aria-valuetext', each.output.textContent);
  }

  #build(item) {
    const { actions } = this;
    this.summary = el('p', { className: 'summary' });
    const ends =
      item.kind === 'image'
        ? { both: 'How firmly it is held' }
        : { first: 'How firmly at its start', last: 'How firmly at its end' };
    this.levels = Object.fromEntries(
      Object.entries(ends).map(([end, label]) => [
        end,
        slider(label, 0, 100, 5, (value) => actions.hold(1 - value / 100, end)),
      ]),
    );
    const rows = Object.values(this.levels).map((each) => each.row);
    if (item.kind === 'clip') {
      this.length = slider('How much of it is used', 1, 1, 1, actions.length);
      this.start = slider('Which part is used', 0, 0, 1, actions.start);
      rows.push(this.length.row, this.start.row);
    }
    const head = el(
      'div',
      { className: 'head' },
      this.summary,
      button('Remove', actions.remove, { className: 'plain' }),
    );
    this.element.replaceChildren(head, ...rows);
  }
}

function slider(label, min, max, step, changed) {
  const output = el('output');
  const input = el('input', { type: 'range', min, max, step, oninput: () => changed(Number(input.value)) });
  return { row: el('label', { className: 'row' }, el('span', { textContent: label }), input, output), input, output };
}
