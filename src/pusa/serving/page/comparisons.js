/**
 * Several clips side by side: seeds, grids of two settings, and clips that were chosen in the gallery.
 *
 * A comparison is {id, title, rows: [text], columns: [text], cells: [[id of a clip]]}. The clips live on the server;
 * which of them belong together is kept in this browser.
 */
import * as api from './api.js';
import { active } from './clips.js';
import { button, el } from './dom.js';
import { still } from './player.js';
import { inWords } from './stage.js';

const KEY = 'pusa.comparisons';
const KEPT = 20;

export class Comparisons {
  constructor() {
    try {
      this.all = JSON.parse(localStorage.getItem(KEY)) ?? [];
    } catch {
      this.all = [];
    }
  }

  add(comparison) {
    this.#store([{ id: String(Date.now()), ...comparison }, ...this.all]);
    return this.all[0];
  }

  drop(id) {
    this.#store(this.all.filter((one) => one.id !== id));
  }

  #store(all) {
    this.all = all.slice(0, KEPT);
    try {
      localStorage.setItem(KEY, JSON.stringify(this.all));
    } catch {
      // Without storage a comparison lasts as long as the page.
    }
  }
}

/** A table of clips that play together. */
export class ComparisonView {
  #cells = new Map();

  /** @param {{select: (id) => void, drop: () => void}} actions */
  constructor(element, clips, comparison, actions) {
    Object.assign(this, { element, clips, comparison, actions });
    const head = comparison.columns.map((text) => el('th', { scope: 'col', textContent: text }));
    const named = comparison.rows.some(Boolean);
    const rows = comparison.cells.map((ids, i) => {
      const cells = ids.map((id) => {
        const cell = el('td');
        this.#cells.set(id, { cell, shown: null });
        return cell;
      });
      return el('tr', {}, ...(named ? [el('th', { scope: 'row', textContent: comparison.rows[i] })] : []), ...cells);
    });
    this.playButton = button('Pause', () => this.#toggle(), { className: 'plain' });
    this.range = el('input', {
      type: 'range',
      min: 0,
      max: 1000,
      value: 0,
      'aria-label': 'Place in the clips',
      oninput: () => this.#seek(this.range.value / 1000),
    });
    const controls = el(
      'div',
      { className: 'controls' },
      this.playButton,
      this.range,
      button('Forget this comparison', actions.drop, { className: 'link' }),
    );
    const table = el(
      'table',
      { className: 'comparison' },
      el('thead', {}, el('tr', {}, ...(named ? [el('td')] : []), ...head)),
      el('tbody', {}, ...rows),
    );
    element.replaceChildren(
      el('h2', { textContent: comparison.title }),
      el('div', { className: 'scroll', tabIndex: 0, role: 'group', 'aria-label': 'The clips' }, table),
      controls,
    );
    this.playing = !still();
    this.show();
  }

  /** Show what has changed: a cell shows the state of its clip, and the clip when it is finished. */
  show() {
    for (const [id, entry] of this.#cells) {
      const video = this.clips.get(id);
      const state = video ? (active(video) ? `${video.status} ${inWords(video)}` : video.status) : 'gone';
      if (state === entry.shown) continue;
      entry.shown = state;
      entry.cell.replaceChildren(this.#content(id, video));
    }
    this.playButton.textContent = this.playing ? 'Pause' : 'Play';
  }

  get #players() {
    return [...this.element.querySelectorAll('video')];
  }

  #content(id, video) {
    if (!video) return el('p', { className: 'soft', textContent: 'Deleted' });
    if (active(video)) return el('p', { className: 'soft', textContent: inWords(video) });
    const open = button('', () => this.actions.select(id), {
      className: 'open',
      'aria-label': `Show this clip, seed ${video.seed}`,
    });
    if (video.status === 'failed') open.textContent = 'Failed';
    else open.append(this.#player(id));
    return open;
  }

  #player(id) {
    const player = el('video', { src: api.address(id), muted: true, loop: true, playsInline: true });
    player.addEventListener('loadeddata', () => this.#together());
    return player;
  }

  /** Start again together when one more clip is there. */
  #together() {
    this.#seek(0);
    if (this.playing) this.#players.forEach((one) => one.play().catch(() => {}));
  }

  #toggle() {
    this.playing = !this.playing;
    this.#players.forEach((one) => (this.playing ? one.play().catch(() => {}) : one.pause()));
    this.show();
  }

  #seek(share) {
    this.#players.forEach((one) => {
      if (Number.isFinite(one.duration)) one.currentTime = share * one.duration * 0.999;
    });
  }
}
