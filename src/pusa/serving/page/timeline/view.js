/** The elements of one item on the timeline: its small pictures, and handles for its place and its firmness. */
import { button, el, setAttribute, svg } from '../dom.js';
import { description, firmness } from './items.js';

const FLOOR = 150; // below the lane, which cuts it off; 100 is the level of full noise
const ENDS = { both: 'firmness', first: 'firmness at its start', last: 'firmness at its end' };

export class ItemView {
  /** @param {{onremove: () => void}} actions */
  constructor(item, actions) {
    const name = item.source.name;
    this.place = el('div', { className: 'place', role: 'slider', tabIndex: 0, 'aria-label': `${name}: place` });
    this.area = svg('polygon', { class: 'area' });
    this.handles = (item.kind === 'image' ? ['both'] : ['first', 'last']).map((end) =>
      el('div', {
        className: `handle ${end}`,
        role: 'slider',
        tabIndex: 0,
        'aria-orientation': 'vertical',
        'aria-label': `${name}: ${ENDS[end]}`,
        'aria-valuemin': 0,
        'aria-valuemax': 100,
        'data-end': end,
      }),
    );
    const level = el(
      'div',
      { className: 'level' },
      svg('svg', { viewBox: '0 0 100 100', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, this.area),
    );
    level.append(...this.handles);
    this.edge =
      item.kind === 'clip' ? el('div', { className: 'edge', title: 'Drag to use more or fewer frames' }) : null;
    const remove = button('×', actions.onremove, {
      className: 'remove',
      'aria-label': `Remove ${name}`,
      tabIndex: -1,
      title: 'Remove',
    });
    this.element = el('div', {
      className: `item ${item.kind}`,
      role: 'group',
      'aria-label': name,
      'data-key': item.key,
    });
    this.element.append(this.place, level, ...(this.edge ? [this.edge] : []), remove);
    this.#thumbs(item);
  }

  #thumbs(item) {
    const pictures = item.source.thumbs.map((src) => el('img', { src, alt: '', draggable: false }));
    this.place.append(
      ...(pictures.length ? pictures : [el('span', { className: 'untold', textContent: item.source.name })]),
    );
  }

  /** Show the item as it is now. */
  show(item, grid, selected) {
    const { style } = this.element;
    style.left = `${(100 * item.slot) / grid.slots}%`;
    style.width = `${(100 * item.count) / grid.slots}%`;
    this.element.classList.toggle('selected', selected);
    setAttribute(this.place, 'aria-valuemin', 0);
    setAttribute(this.place, 'aria-valuemax', grid.frames - 1);
    setAttribute(
      this.place,
      'aria-valuenow',
      item.frame ?? (item.kind === 'image' ? grid.pictureFrame(item.slot) : grid.first(item.slot)),
    );
    setAttribute(this.place, 'aria-valuetext', description(item, grid));
    this.place.title = `${item.source.name}: ${description(item, grid)}`;
    const levels = { both: item.noise[0], first: item.noise[0], last: item.noise.at(-1) };
    for (const handle of this.handles) {
      const noise = levels[handle.dataset.end];
      handle.style.top = `${100 * noise}%`;
      handle.title = `Held: ${firmness(noise)}`;
      setAttribute(handle, 'aria-valuenow', Math.round(100 * (1 - noise)));
      setAttribute(handle, 'aria-valuetext', `${firmness(noise)}, ${Math.round(100 * (1 - noise))} %`);
    }
    const steps = item.noise.map((noise, i) => [(100 * (i + 0.5)) / item.count, 100 * noise]);
    const outline = [[0, FLOOR], [0, steps[0][1]], ...steps, [100, steps.at(-1)[1]], [100, FLOOR]];
    this.area.setAttribute('points', outline.map((point) => point.join(',')).join(' '));
  }
}
