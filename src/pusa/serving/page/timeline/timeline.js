/**
 * <pusa-timeline>: the pictures and clips that are given for some frames of a clip, put in place by hand.
 *
 * Properties: `clip` is {frames, fps, group} (group: frames per latent frame). `value` is the list of conditions, as a
 * request to `POST /v1/videos` takes them. `ghosts` is a list of {slot, label, noise}: places that ask to be filled
 * (slot −1 is the last); what fills one is held with its noise. `open` turns what was dropped, chosen or pasted into
 * sources; see files.js. `describe` turns the source of a condition that is set as `value` into one.
 * Events: "change" when the value changed; "refused" with a sentence as detail when something did not fit.
 */
import { button, el } from '../dom.js';
import { Cells, gutter } from './cells.js';
import { fileSource } from './files.js';
import { Grid } from './grid.js';
import { Inspector } from './inspector.js';
import * as rules from './items.js';
import { keyAction } from './keyboard.js';
import { follow, scrollNear, slotAt } from './pointer.js';
import { style } from './style.js';
import { ItemView } from './view.js';

const EMPTY = 'Drop, paste or add pictures and clips. The model makes the frames that you leave empty.';

export class PusaTimeline extends HTMLElement {
  #items = [];
  #views = new Map();
  #grid = new Grid({ frames: 17, fps: 8, group: 4 });
  #ghosts = [];
  #selected = null;

  open = (transfer) => Promise.all([...transfer.files].map((file) => fileSource(file, this.#grid.fps)));
  describe = async (src, kind) => ({ name: String(src), kind, src, frames: null, thumbs: [] });

  constructor() {
    super();
    this.attachShadow({ mode: 'open' }).adoptedStyleSheets = [style];
    this.#build();
  }

  get clip() {
    const { frames, fps, group } = this.#grid;
    return { frames, fps, group };
  }

  /** Some or all of them. Throws `Refusal` with a sentence, and changes nothing, if an item would be outside. */
  set clip(change) {
    const grid = new Grid({ ...this.clip, ...change });
    this.#items = rules.inGrid(this.#items, grid);
    this.#grid = grid;
    this.#show();
  }

  get value() {
    return this.#sorted().map((item) => rules.toCondition(item, this.#grid));
  }

  get ghosts() {
    return this.#ghosts;
  }

  set ghosts(ghosts) {
    this.#ghosts = ghosts;
    this.#show();
  }

  get empty() {
    return this.#items.length === 0;
  }

  /** Replace all items. Resolves when the sources are described; rejects with `Refusal` if a condition does not fit. */
  async load(conditions) {
    const sources = await Promise.all(conditions.map((one) => this.describe(one.src, one.type)));
    const items = [];
    conditions.forEach((one, i) => items.push(rules.fromCondition(items, this.#grid, one, sources[i])));
    this.#items = items;
    this.#selected = null;
    this.#changed('');
  }

  set value(conditions) {
    this.load(conditions).catch((error) => this.#refuse(error));
  }

  /** Add sources, the first one at `slot` or the first free place. Returns whether all found a place. */
  add(sources, slot = null) {
    const all = sources.every((source, i) =>
      this.#try(() => {
        const item = this.#asAsked(rules.placed(this.#items, this.#grid, source, i === 0 ? slot : null));
        this.#items = [...this.#items, item];
        this.#selected = item.key;
        return `Added ${this.#inWords(item)}`;
      }),
    );
    const view = this.#views.get(this.#selected);
    view?.element.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    if (all && slot !== null) view?.place.focus({ preventScroll: true });
    return all;
  }

  addFiles(files, slot = null) {
    return this.#take({ files }, slot);
  }

  async #take(transfer, slot) {
    try {
      return this.add(await this.open(transfer), slot);
    } catch (error) {
      return this.#refuse(error);
    }
  }

  /** Say a sentence below the timeline. */
  say(text, refused = false) {
    this.said.textContent = text;
    this.said.classList.toggle('refused', refused);
  }

  // Building

  #build() {
    this.said = el('p', { className: 'said', role: 'status', textContent: EMPTY });
    this.canvas = el('div', { className: 'canvas' });
    this.cells = new Cells(this.canvas, (slot) => this.#choose(slot));
    this.canvas.append(this.cells.element);
    this.scroller = el(
      'div',
      { className: 'scroll', tabIndex: 0, role: 'group', 'aria-label': 'Frames of the clip' },
      this.canvas,
    );
    this.frame = el('div', { className: 'frame', part: 'frame' }, gutter(), this.scroller);
    this.chooser = el('input', {
      type: 'file',
      accept: 'image/*,video/*',
      multiple: true,
      className: 'hidden',
      tabIndex: -1,
      'aria-label': 'Pictures and clips',
    });
    this.chooser.addEventListener('change', () => {
      this.addFiles([...this.chooser.files], this.chosenSlot);
      this.chooser.value = '';
    });
    this.adder = button('Add pictures or clips', () => this.#choose(null), { className: 'plain' });
    this.length = el('span', { className: 'length', part: 'length' });
    this.inspector = new Inspector({
      hold: (noise, end) => this.#hold(this.#selected, noise, end),
      length: (count) => this.#update(this.#selected, (item) => rules.resized(item, count)),
      start: (start) => this.#update(this.#selected, (item) => ({ ...item, start })),
      remove: () => this.#remove(this.#selected),
    });
    const bar = el('div', { className: 'bar' }, this.adder, el('slot'), this.length);
    this.shadowRoot.append(this.frame, this.said, this.inspector.element, bar, this.chooser);
    this.#listen();
    this.#show();
  }

  #listen() {
    this.canvas.addEventListener('pointerdown', (event) => event.button === 0 && this.#press(event));
    this.canvas.addEventListener('keydown', (event) => this.#key(event));
    this.canvas.addEventListener('focusin', (event) => this.#select(keyOf(event.target)));
    this.frame.addEventListener('dragover', (event) => {
      event.preventDefault();
      this.frame.classList.add('over');
      this.#mark(slotAt(this.canvas, this.#grid, event.clientX), 1);
    });
    this.frame.addEventListener('dragleave', () => this.#dragEnd());
    this.frame.addEventListener('drop', (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.#dragEnd();
      this.#take(event.dataTransfer, slotAt(this.canvas, this.#grid, event.clientX));
    });
  }

  // Showing

  #show() {
    const grid = this.#grid;
    this.cells.show(grid);
    this.length.textContent = `${grid.frames} frames · ${(grid.frames / grid.fps).toFixed(1)} s`;
    this.#showItems();
    this.cells.showGhosts(
      this.#ghosts.map((one) => ({ ...one, slot: this.#place(one) })),
      this.#items,
    );
    const item = this.#item(this.#selected);
    this.inspector.show(item, grid, item ? rules.room(this.#items, grid, item, item.slot) : 0);
  }

  #showItems() {
    for (const [key, view] of this.#views) {
      if (!this.#item(key)) view.element.remove();
      if (!this.#item(key)) this.#views.delete(key);
    }
    const elements = this.#sorted().map((item) => {
      if (!this.#views.has(item.key)) {
        this.#views.set(item.key, new ItemView(item, { onremove: () => this.#remove(item.key) }));
      }
      const view = this.#views.get(item.key);
      view.show(item, this.#grid, item.key === this.#selected);
      return view.element;
    });
    const inOrder = [...this.canvas.querySelectorAll('.item')].every((one, i) => one === elements[i]);
    if (inOrder && elements.every((one) => one.isConnected)) return;
    const focused = this.shadowRoot.activeElement;
    this.canvas.append(...elements); // so that the Tab key goes from left to right
    focused?.focus({ preventScroll: true });
  }

  #mark(slot, count, except = null) {
    this.cells.mark(slot, count, slot !== null && Boolean(rules.holder(this.#items, slot, count, except)));
  }

  #dragEnd() {
    this.frame.classList.remove('over');
    this.#mark(null, 0);
  }

  // Changing

  #item(key) {
    return this.#items.find((one) => one.key === key) ?? null;
  }

  #sorted() {
    return [...this.#items].sort((a, b) => a.slot - b.slot);
  }

  #inWords(item) {
    const words = `${item.source.name}: ${rules.description(item, this.#grid)}.`;
    const [all, used] = [item.source.frames, this.#grid.framesIn(item.slot, item.count)];
    return item.kind === 'clip' && all !== null && used < all
      ? `${words} ${used} of its ${all} frames are used.`
      : words;
  }

  #try(work) {
    try {
      const said = work();
      this.#changed(said);
      return true;
    } catch (error) {
      this.#refuse(error);
      return false;
    }
  }

  #refuse(error) {
    if (!(error instanceof rules.Refusal)) throw error;
    this.say(error.message, true);
    this.#show();
    this.dispatchEvent(new CustomEvent('refused', { detail: error.message, bubbles: true, composed: true }));
  }

  #changed(said) {
    this.#show();
    this.say(said || (this.empty ? EMPTY : ''));
    this.dispatchEvent(new Event('change', { bubbles: true, composed: true }));
  }

  #update(key, change) {
    const item = this.#item(key);
    if (!item) return false;
    return this.#try(() => {
      const next = change(item);
      this.#items = this.#items.map((one) => (one.key === key ? next : one));
      return this.#inWords(next);
    });
  }

  #move(key, slot, exact) {
    return this.#update(key, (item) => rules.moved(this.#items, this.#grid, item, slot, exact));
  }

  #hold(key, noise, end) {
    return this.#update(key, (item) => rules.held(item, noise, end));
  }

  #longer(key, by) {
    return this.#update(key, (item) => {
      const most = rules.room(this.#items, this.#grid, item, item.slot);
      if (item.count + by > most)
        throw new rules.Refusal(`${item.source.name} cannot fill more: its frames or the free place end here.`);
      return rules.resized(item, Math.max(1, item.count + by));
    });
  }

  /** A new item, with the firmness that a ghost at its place asks for. */
  #asAsked(item) {
    const ghost = this.#ghosts.find((one) => this.#place(one) === item.slot && one.noise !== undefined);
    return ghost ? rules.held(item, [ghost.noise].flat()[0]) : item;
  }

  #place({ slot }) {
    return slot < 0 ? slot + this.#grid.slots : slot;
  }

  #remove(key) {
    const order = this.#sorted();
    const at = order.findIndex((one) => one.key === key);
    if (at < 0) return;
    this.#items = this.#items.filter((one) => one.key !== key);
    const next = order[at + 1] ?? order[at - 1] ?? null;
    this.#selected = next?.key ?? null;
    this.#changed(`Removed ${order[at].source.name}.`);
    (next ? this.#views.get(next.key).place : this.adder).focus();
  }

  #select(key) {
    if (!key || key === this.#selected) return;
    this.#selected = key;
    this.#show();
  }

  #choose(slot) {
    this.chosenSlot = slot;
    this.chooser.click();
  }

  // Pointer and keyboard

  #press(event) {
    const key = keyOf(event.target);
    if (!key || event.target.closest('.remove')) return;
    this.#select(key);
    if (event.target.matches('.handle')) this.#dragHandle(event, key);
    else if (event.target.matches('.edge')) this.#dragEdge(event, key);
    else if (event.target.closest('.place')) this.#dragItem(event, key);
  }

  #dragItem(press, key) {
    const { element } = this.#views.get(key);
    const item = this.#item(key);
    const grabbed = slotAt(this.canvas, this.#grid, press.clientX) - item.slot;
    const target = (event) =>
      Math.max(0, Math.min(this.#grid.slots - item.count, slotAt(this.canvas, this.#grid, event.clientX) - grabbed));
    follow(press.target, press, {
      move: (dx, _, event) => {
        element.classList.add('dragging');
        element.style.transform = `translateX(${dx}px)`;
        this.#mark(target(event), item.count, key);
        scrollNear(this.scroller, event.clientX);
      },
      done: (moved, event) => {
        element.classList.remove('dragging');
        element.style.transform = '';
        this.#mark(null, 0);
        if (moved && target(event) !== item.slot) this.#move(key, target(event), true);
      },
    });
  }

  #dragHandle(press, key) {
    const { end } = press.target.dataset;
    const before = this.#item(key);
    follow(press.target, press, {
      move: (_, __, event) => {
        const box = press.target.parentElement.getBoundingClientRect();
        this.#hold(key, Math.round((20 * (event.clientY - box.top)) / box.height) / 20, end);
      },
      done: (moved) => moved === null && this.#update(key, () => before),
    });
  }

  #dragEdge(press, key) {
    const before = this.#item(key);
    follow(press.target, press, {
      move: (_, __, event) => {
        const by = slotAt(this.canvas, this.#grid, event.clientX) - before.slot + 1 - this.#item(key).count;
        if (by) this.#longer(key, by);
      },
      done: (moved) => moved === null && this.#update(key, () => before),
    });
  }

  #key(event) {
    const key = keyOf(event.target);
    const item = this.#item(key);
    const action =
      item &&
      keyAction(event, item, this.#grid, event.target.dataset.end, {
        hold: (noise, end) => this.#hold(key, noise, end),
        move: (slot, exact) => this.#move(key, slot, exact),
        longer: (slots) => this.#longer(key, slots),
        remove: () => this.#remove(key),
      });
    if (!action) return;
    event.preventDefault();
    action();
  }
}

function keyOf(target) {
  return target.closest('.item')?.dataset.key ?? null;
}

customElements.define('pusa-timeline', PusaTimeline);
