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
  scale: 'lora',
};
const LEFT_OUT = { steps: 'steps', seed: 'seed', guidance: 'guidance', width: 'size', height: 'size', scale: 'lora' };
const LARGE = 32e6; // bytes of files above which an order is checked only when it is sent

/**
 * Three kinds of sentences stand in the form at the same time: what the page itself finds missing or wrong, what the
 * server refuses in the rest of the order, and why something that a person did failed. The last is also read out.
 */
export class Problems {
  #stop = new AbortController();
  #own = [];
  #refused = [];
  #failed = [];

  /**
   * @param {Composer} composer
   * @param {(text: string) => void} announce reads a text out
   */
  constructor(composer, announce) {
    this.composer = composer;
    this.announce = announce;
    this.places = [...document.querySelectorAll('#composer .error[data-for]')];
    this.places.forEach((place) => (place.id = `problem-${place.dataset.for.split(' ')[0] || 'any'}`));
    this.notes = document.getElementById('notes');
    this.plan = document.getElementById('plan');
  }

  /**
   * Say what the page finds wrong, ask the server about the rest of the order, and show its answer. An order whose
   * sources are missing is not asked about.
   */
  async check() {
    this.#stop.abort();
    this.#stop = new AbortController();
    const { composer } = this;
    const missing = composer.missing();
    this.#own = missing.filter((one) => one.urgent || this.insists === composer.presetId);
    const order = composer.order();
    missing.forEach(({ param }) => delete order[LEFT_OUT[param]]);
    if (missing.some(({ param }) => !(param in LEFT_OUT)) || bytes(order) > LARGE) return this.#answered();
    if (this.#own.length) this.#show();
    try {
      const answer = await api.check(order, this.#stop.signal);
      this.#answered([], missing.length ? null : answer);
    } catch (error) {
      if (error.name !== 'AbortError') this.#answered(isRefusal(error) ? [error] : []);
    }
    return undefined;
  }

  /** Say what is missing; say it again after every change, until it is there or another task is chosen. */
  insist() {
    this.insists = this.composer.presetId;
    this.check();
    this.#draw(this.#own);
  }

  /** Say why something failed, until the form changes. What the server refused stays until it takes the order. */
  fail(error) {
    if (isRefusal(error)) this.#refused = [error];
    else this.#failed = [error];
    this.#show();
    this.#draw([error]);
  }

  /** Take back why something failed, and what was missing as soon as all of it is there. */
  edited() {
    this.#failed = [];
    if (this.insists && !this.composer.missing().length) this.insists = null;
    if (!this.composer.missing().length) this.#own = [];
    this.#show();
  }

  clear() {
    this.#failed = [];
    this.#own = [];
    this.#answered();
  }

  #answered(refused = [], answer = null) {
    this.#refused = refused;
    this.#show();
    this.#told(answer ?? {});
  }

  /** Show all sentences where they belong, and mark their fields. */
  #show() {
    const said = new Map([...this.places, ...Object.values(this.composer.places)].map((place) => [place, []]));
    document.querySelectorAll('#composer [aria-invalid]').forEach((input) => {
      input.removeAttribute('aria-invalid');
      input.removeAttribute('aria-describedby');
    });
    for (const problem of [...this.#own, ...this.#refused, ...this.#failed]) {
      const place = this.#placeOf(problem);
      if (!said.get(place).includes(problem.message)) said.get(place).push(problem.message);
      const input = document.getElementById(nameOf(problem)) ?? document.getElementById(fieldOf(problem));
      if (!input?.matches('input, textarea, select')) continue;
      input.setAttribute('aria-invalid', 'true');
      input.setAttribute('aria-describedby', place.id);
    }
    for (const [place, sentences] of said) {
      const text = sentences.join(' ');
      if (place.say) place.say(text);
      else if (place.textContent !== text) place.textContent = text;
      if (!place.say) place.hidden = !text;
      if (text && place.closest('details')) place.closest('details').open = true;
    }
  }

  #placeOf(problem) {
    const field = fieldOf(problem);
    if (this.composer.places[field] && !this.composer.usesTimeline) return this.composer.places[field];
    const places = (name) => this.places.find((one) => one.dataset.for.split(' ').includes(name));
    return places(field) ?? places('');
  }

  /** Draw the attention to sentences: bring the first one into view and read them out. */
  #draw(problems) {
    if (!problems.length) return;
    this.#placeOf(problems[0]).scrollIntoView({ block: 'nearest' });
    this.announce(problems.map((one) => one.message).join(' '));
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

/** Whether the server says that the order is wrong, and not that it cannot take one now. */
function isRefusal(error) {
  return error instanceof api.ApiError && [400, 413, 415, 422].includes(error.status);
}

/** The name of the field that a problem is about: "conditions" for "conditions[0].src". */
function nameOf({ param }) {
  return String(param ?? '').match(/^\w*/)[0];
}

function fieldOf(problem) {
  const name = nameOf(problem);
  return ALIASES[name] ?? name;
}

function bytes(value) {
  if (value instanceof File) return value.size;
  return value && typeof value === 'object' ? Object.values(value).reduce((sum, one) => sum + bytes(one), 0) : 0;
}
