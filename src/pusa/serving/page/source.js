/**
 * <pusa-source label="…">: a place for one whole clip: drop it, choose a file, or take one of the finished clips.
 *
 * `value` is a source (see timeline/files.js) or null. `open` turns what was dropped or chosen into sources, and `pick`
 * lets the person choose a finished clip. Event "change" when the value changed. `say` puts a sentence of the server
 * under the place.
 */
import { button, el } from './dom.js';

let count = 0;

export class PusaSource extends HTMLElement {
  #value = null;

  open = async () => [];
  pick = async () => null;

  connectedCallback() {
    if (this.place) return;
    const title = el('p', { className: 'title', id: `source-${++count}`, textContent: this.getAttribute('label') });
    this.setAttribute('role', 'group');
    this.setAttribute('aria-labelledby', title.id);
    this.film = el('div', { className: 'film' });
    this.name = el('p', { className: 'name soft' });
    this.notice = el('p', { className: 'error', hidden: true, role: 'alert' });
    this.error = el('p', { className: 'error', hidden: true, role: 'alert' });
    this.chooser = el('input', {
      type: 'file',
      accept: 'video/*,image/gif,image/webp',
      className: 'hidden',
      tabIndex: -1,
      'aria-label': this.getAttribute('label'),
    });
    this.chooser.addEventListener('change', async () => {
      await this.take({ files: [...this.chooser.files] });
      this.chooser.value = '';
    });
    this.remover = button('Remove', () => (this.value = null), { className: 'link' });
    const choose = button('Choose a file', () => this.chooser.click(), { className: 'plain' });
    const own = button(
      'From your clips',
      async () => {
        const source = await this.pick();
        if (source) this.value = source;
      },
      { className: 'plain' },
    );
    this.place = el(
      'div',
      { className: 'place' },
      title,
      this.film,
      this.name,
      el('div', { className: 'buttons' }, choose, own, this.remover),
      this.chooser,
    );
    this.append(this.place, this.notice, this.error);
    this.#listen();
    this.#show();
  }

  get value() {
    return this.#value;
  }

  set value(source) {
    this.set(source);
    this.dispatchEvent(new Event('change', { bubbles: true }));
  }

  /** Set the value without an event. */
  set(source) {
    this.#value = source;
    this.say('');
    this.#notice('');
    this.#show();
  }

  say(text) {
    if (this.error.textContent !== text) this.error.textContent = text; // read out once
    this.error.hidden = !text;
  }

  /** Take the first clip of what was dropped, chosen or pasted. */
  async take(transfer) {
    let sources;
    try {
      sources = await this.open(transfer);
    } catch (error) {
      this.#notice(error.message);
      return;
    }
    const clip = sources.find((one) => one.kind === 'clip');
    if (clip) this.value = clip;
    else if (sources.length) this.#notice(`${sources[0].name} is a picture: choose a clip here.`);
    if (clip && sources.length > 1) this.#notice(`Only ${clip.name} was taken: this place holds one clip.`);
  }

  /** What became of what was dropped or chosen, until the next time. */
  #notice(text) {
    Object.assign(this.notice, { hidden: !text, textContent: text });
  }

  #listen() {
    this.addEventListener('dragover', (event) => {
      event.preventDefault();
      this.place.classList.add('over');
    });
    this.addEventListener('dragleave', () => this.place.classList.remove('over'));
    this.addEventListener('drop', (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.place.classList.remove('over');
      this.take(event.dataTransfer);
    });
  }

  #show() {
    if (!this.place) return;
    const source = this.#value;
    this.place.classList.toggle('filled', Boolean(source));
    this.film.replaceChildren(...(source?.thumbs ?? []).map((src) => el('img', { src, alt: '' })));
    const length = source?.frames ? `, ${source.frames} frames` : '';
    this.name.textContent = source ? `${source.name}${length}` : 'Drop a clip here';
    this.remover.hidden = !source;
  }
}

customElements.define('pusa-source', PusaSource);
