/** The list of clips that are being made, and the gallery of all others. */
import * as api from './api.js';
import { active } from './clips.js';
import { button, el, setAttribute } from './dom.js';
import { CLIP_TYPE } from './sources.js';
import { inWords } from './stage.js';

const MADE = 'completed';

export class Gallery {
  #cards = new Map();
  #rows = new Map();
  #chosen = new Set();

  /** @param {object} actions by name: select, cancel, remove, fill, compare */
  constructor(clips, actions) {
    this.clips = clips;
    this.actions = actions;
    this.queue = document.getElementById('queue');
    this.cards = document.getElementById('cards');
    this.bar = document.getElementById('chosen');
    document.getElementById('older').addEventListener('click', () => clips.older());
  }

  /** Show the clips as they are now. selected: the id of the clip on the stage. */
  show(selected) {
    const all = this.clips.all;
    const waiting = all.filter(active).sort((a, b) => place(a) - place(b));
    const done = all.filter((video) => !active(video));
    this.queue.hidden = !waiting.length;
    reuse(
      this.queue.querySelector('ol'),
      waiting,
      this.#rows,
      (video) => this.#row(video),
      (row, video) => this.#showRow(row, video, selected),
    );
    reuse(
      this.cards,
      done,
      this.#cards,
      (video) => this.#card(video),
      (card, video) => this.#showCard(card, video, selected),
    );
    document.getElementById('none').hidden = done.length > 0;
    document.getElementById('older').hidden = !this.clips.more;
    this.#chosen = new Set([...this.#chosen].filter((id) => this.clips.get(id)));
    this.#showBar();
  }

  #row(video) {
    const name = button('', () => this.actions.select(video.id), { className: 'name' });
    const words = el('span', { className: 'words soft' });
    const bar = el('progress', { max: 100, 'aria-label': 'Progress' });
    const cancel = button('Cancel', () => this.actions.cancel(this.clips.get(video.id)), {
      className: 'plain small',
      'aria-label': `Cancel “${label(video)}”`,
    });
    return Object.assign(el('li', {}, name, words, cancel, bar), { parts: { name, words, bar } });
  }

  #showRow({ parts }, video, selected) {
    parts.name.textContent = label(video);
    parts.words.textContent = inWords(video);
    parts.bar.value = video.progress ?? 0;
    setAttribute(parts.name, 'aria-current', video.id === selected ? 'true' : null);
  }

  #card(video) {
    const failed = video.status !== MADE;
    const picture = failed
      ? el('span', { className: 'failed', textContent: 'Failed' })
      : el('img', {
          src: api.address(video.id, 'content?variant=thumbnail'),
          alt: '',
          loading: 'lazy',
          draggable: false,
        });
    const open = button('', () => this.actions.select(video.id), { className: 'open' });
    open.append(
      picture,
      el('span', { className: 'name', textContent: label(video) }),
      el('span', { className: 'soft', textContent: `seed ${video.seed}` }),
    );
    const choose = el('input', {
      type: 'checkbox',
      'aria-label': `Choose “${label(video)}”, seed ${video.seed}`,
      onchange: () => this.#choose(video.id, choose.checked),
    });
    const card = el('li', { className: 'item', draggable: !failed }, open, choose);
    card.addEventListener('dragstart', (event) => {
      event.dataTransfer.setData(CLIP_TYPE, video.id);
      event.dataTransfer.effectAllowed = 'copy';
    });
    return Object.assign(card, { parts: { open, choose } });
  }

  #showCard(card, video, selected) {
    setAttribute(card.parts.open, 'aria-current', video.id === selected ? 'true' : null);
    card.parts.choose.checked = this.#chosen.has(video.id);
  }

  #choose(id, chosen) {
    if (chosen) this.#chosen.add(id);
    else this.#chosen.delete(id);
    this.#showBar();
  }

  #showBar() {
    const videos = [...this.#chosen].map((id) => this.clips.get(id));
    const made = videos.filter((video) => video.status === MADE);
    const key = [...this.#chosen].join();
    if (key === this.shownChoice) return; // so that a button keeps the focus
    this.shownChoice = key;
    this.bar.hidden = !videos.length;
    const buttons = [el('span', { textContent: `${videos.length} chosen` })];
    if (made.length === 2 && videos.length === 2)
      buttons.push(button('Fill the gap between them', () => this.actions.fill(...made), { className: 'plain' }));
    if (made.length >= 2)
      buttons.push(button('Compare side by side', () => this.actions.compare(made), { className: 'plain' }));
    buttons.push(button('Delete', () => this.actions.remove(videos), { className: 'plain danger' }));
    buttons.push(
      button(
        'Choose none',
        () => {
          this.#chosen.clear();
          this.#cards.forEach((card) => (card.parts.choose.checked = false));
          this.#showBar();
        },
        { className: 'link' },
      ),
    );
    this.bar.replaceChildren(...buttons);
  }
}

/** Keep one element for each video, in the order of the videos, without building again what is there. */
function reuse(parent, videos, elements, build, show) {
  const ids = new Set(videos.map((video) => video.id));
  for (const [id, element] of elements) {
    if (ids.has(id)) continue;
    element.remove();
    elements.delete(id);
  }
  videos.forEach((video, i) => {
    if (!elements.has(video.id)) elements.set(video.id, build(video));
    const element = elements.get(video.id);
    if (parent.children[i] !== element) parent.insertBefore(element, parent.children[i] ?? null);
    show(element, video);
  });
}

function place(video) {
  return video.status === 'in_progress' ? -1 : (video.queue_position ?? 1e9);
}

function label(video) {
  return video.prompt || 'a clip without words';
}
