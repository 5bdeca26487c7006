/**
 * The latent frames of the timeline: a column for each with its frames and its time, and places that ask to be filled.
 */
import { button, el } from '../dom.js';
import { holder } from './items.js';
import { slotAt } from './pointer.js';

export class Cells {
  /** @param {HTMLElement} canvas where items lie, too; choose(slot) is called when an empty place is pressed */
  constructor(canvas, choose) {
    this.canvas = canvas;
    this.choose = choose;
    this.element = el('div', { className: 'cells', 'aria-hidden': 'true' });
    this.element.addEventListener('click', (event) => choose(slotAt(canvas, this.grid, event.clientX)));
  }

  /** Draw the columns of a grid. */
  show(grid) {
    const key = `${grid.frames} ${grid.fps} ${grid.group}`;
    this.grid = grid;
    if (this.drawn === key) return;
    this.drawn = key;
    this.canvas.style.setProperty('--slots', grid.slots);
    const frames = (slot) => (slot === 0 ? '0' : `${grid.first(slot)}–${grid.pictureFrame(slot)}`);
    const column = (slot) =>
      el(
        'div',
        { className: 'cell' },
        el('span', { className: 'tick' }, el('b', { textContent: frames(slot) }), grid.seconds(grid.first(slot))),
        el('span', { className: 'plus', textContent: '+' }),
      );
    this.element.replaceChildren(...[...Array(grid.slots).keys()].map(column));
  }

  /** Show the places that ask to be filled and are free. ghosts: [{slot, label}] */
  showGhosts(ghosts, items) {
    const { grid, canvas } = this;
    const free = ghosts.filter(({ slot }) => slot < grid.slots && !holder(items, slot, 1));
    const key = JSON.stringify([grid.slots, free]);
    if (this.shownGhosts === key) return; // so that a place keeps the focus
    this.shownGhosts = key;
    canvas.querySelectorAll('.ghost').forEach((one) => one.remove());
    for (const { slot, label } of free) {
      const ghost = button(label, () => this.choose(slot), { className: 'ghost' });
      ghost.style.left = `${(100 * slot) / grid.slots}%`;
      ghost.style.width = `calc(${100 / grid.slots}% - .4rem)`;
      canvas.append(ghost);
    }
  }

  /** Mark where something that is dragged would lie; `taken` says that it may not. A slot of null marks nothing. */
  mark(slot, count = 0, taken = false) {
    [...this.element.children].forEach((cell, i) => {
      const inside = slot !== null && i >= slot && i < slot + count;
      cell.classList.toggle('target', inside && !taken);
      cell.classList.toggle('taken', inside && taken);
    });
  }
}

/** The words at the left of the rows. */
export function gutter() {
  const words = (className, ...all) =>
    el('div', { className }, ...all.map((textContent) => el('span', { textContent })));
  const rows = [words('head', 'frame', 'time'), words('scale', 'exact', 'close', 'loose')];
  return el('div', { className: 'gutter', 'aria-hidden': 'true' }, ...rows);
}
