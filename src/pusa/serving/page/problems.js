/** Errors at the place that they are about, and the notes and the plan that the server gives for an order. */
import * as api from './api.js';
import { el } from './dom.js';

const ALIASES = {
  num_frames: 'frames',
  seconds: 'frames',
  num_inference_steps: 'steps',
  guidance_scale: 'guidance',
  width: 'size',
  height: 'size',
  image: 'conditions',
  last_image: 'conditions',
};
const LARGE = 32e6; // bytes of files above which an order is checked only when it is sent

export class Problems {
  #stop = new AbortController();

  /** @param {Composer} composer */
  constructor(composer) {
    this.composer = composer;
    this.places = [...document.querySelectorAll('#composer .error[data-for]')];
    this.notes = document.getElementById('notes');
    this.plan = document.getElementById('plan');
  }

  /** Ask the server about the order as it stands, and show its answer. An incomplete order is not asked about. */
  async check() {
    this.#stop.abort();
    this.#stop = new AbortController();
    const { composer } = this;
    if (composer.refusedLength) return this.show({ param: 'frames', message: composer.refusedLength });
    const missing = composer.missing();
    if (missing?.urgent || (missing && this.insists === composer.presetId)) return this.show(missing);
    if (missing || bytes(composer.order()) > LARGE) return this.clear();
    try {
      const answer = await api.check(composer.order(), this.#stop.signal);
      this.clear();
      this.#told(answer);
    } catch (error) {
      if (error.name === 'AbortError') return undefined;
      if (error instanceof api.ApiError && error.status < 500 && error.status !== 401) this.show(error);
      else this.clear();
    }
    return undefined;
  }

  /** Say what is missing; say it again after every change, until it is there or another task is chosen. */
  insist(missing) {
    this.insists = this.composer.presetId;
    this.show(missing);
  }

  /** Take back what was missing as soon as it is there. */
  edited() {
    if (this.insists && !this.composer.missing()) {
      this.insists = null;
      this.clear();
    }
  }

  clear() {
    for (const place of this.places) Object.assign(place, { hidden: true, textContent: '' });
    Object.values(this.composer.places).forEach((place) => place.say(''));
    document.querySelectorAll('#composer [aria-invalid]').forEach((input) => input.removeAttribute('aria-invalid'));
    this.notes.hidden = true;
    this.plan.hidden = true;
  }

  /** Show a sentence where it belongs. */
  show({ param, message }) {
    this.clear();
    const name = String(param ?? '').match(/^\w*/)[0];
    const field = ALIASES[name] ?? name;
    if (this.composer.places[field] && !this.composer.usesTimeline) {
      this.composer.places[field].say(message);
      return;
    }
    const place =
      this.places.find((one) => one.dataset.for.split(' ').includes(field)) ??
      this.places.find((one) => one.dataset.for === '');
    Object.assign(place, { hidden: false, textContent: message });
    const input = document.getElementById(field);
    if (input?.matches('input, textarea, select')) input.setAttribute('aria-invalid', 'true');
    if (place.closest('details')) place.closest('details').open = true;
  }

  #told(answer) {
    this.notes.replaceChildren(...(answer.notes ?? []).map((text) => el('li', { textContent: text })));
    this.notes.hidden = !answer.notes?.length;
    this.plan.hidden = !answer.matrix;
    if (answer.matrix) {
      const { fps } = answer;
      this.plan.querySelector('pusa-matrix').show({
        sigma: answer.matrix.sigma,
        fps,
        group: this.composer.model.frames_per_latent,
        part: this.composer.preset.task !== 'generate',
      });
    }
  }
}

function bytes(value) {
  if (value instanceof File) return value.size;
  return value && typeof value === 'object' ? Object.values(value).reduce((sum, one) => sum + bytes(one), 0) : 0;
}
