/**
 * The form: from what a person put into it to an order for the server, and back from an order (of a clip, of a recipe).
 *
 * Event "edit" at every change, and "change" when no other has followed it. `order()` is the order as it stands;
 * `missing()` says what a person still has to give. `load(order)` fills the form.
 */
import { button, debounced, el } from './dom.js';
import { LengthControl } from './length.js';
import { missing } from './missing.js';
import { icon, PRESETS, presetOf } from './presets.js';
import { SAMPLES, sampleFile } from './sources.js';
import { Grid } from './timeline/grid.js';
import { firmness, Refusal } from './timeline/items.js';

const id = (name) => document.getElementById(name);
const TEXTS = ['prompt', 'negative_prompt'];
const NUMBERS = ['steps', 'seed', 'guidance'];
const SHOWN = [
  ...TEXTS,
  ...NUMBERS,
  'task',
  'model',
  'size',
  'fit',
  'frames',
  'conditions',
  'clip',
  'a',
  'b',
  'init',
  'direction',
  'noise',
  'strength',
  'lora',
];
const SETTLED = 150; // milliseconds without a change

export class Composer extends EventTarget {
  extra = {};
  needed = [];
  otherLoras = [];

  /** @param {{open, describe, pick}} sources what was dropped as sources; the source of an order; choose a clip */
  constructor({ open, describe, pick }) {
    super();
    this.describe = describe;
    this.timeline = id('timeline');
    this.length = new LengthControl(id('frames'));
    this.places = Object.fromEntries(['clip', 'a', 'b', 'init'].map((name) => [name, id(name)]));
    this.timeline.open = open;
    this.timeline.describe = (src, kind) => describe(src, kind);
    for (const place of Object.values(this.places)) Object.assign(place, { open, pick });
    this.#listen(pick, open);
  }

  /** The preset that is chosen. */
  get preset() {
    return PRESETS.find((one) => one.id === this.presetId);
  }

  get usesTimeline() {
    return ['text', 'image', 'ends', 'keyframes'].includes(this.presetId);
  }

  set model(model) {
    const first = !this.shownModel;
    this.shownModel = model;
    const { defaults } = model;
    id('steps').placeholder = defaults.num_inference_steps;
    id('guidance').placeholder = defaults.guidance_scale;
    this.#sizes(model);
    this.#loras(model.loras ?? []);
    id('examples').replaceChildren(
      ...model.examples.slice(0, 4).map((text) => button(text, () => this.#fill(text), { className: 'chip' })),
    );
    if (first) this.#presets();
    this.kind = null; // so that the length is that of this model
    this.choose(this.presetId ?? 'text');
  }

  get model() {
    return this.shownModel;
  }

  /** Show the inputs of a preset. */
  choose(presetId) {
    const former = this.presetId;
    this.presetId = presetId;
    const { preset } = this;
    id('presets').querySelector(`[value=${presetId}]`).checked = true;
    id('hint').textContent = preset.hint;
    id('timeline-area').hidden = !this.usesTimeline || presetId === 'text';
    for (const task of ['extend', 'transition', 'edit']) id(`${task}-area`).hidden = task !== presetId;
    id('hold-row').hidden = !['extend', 'transition'].includes(presetId);
    this.timeline.ghosts = preset.ghosts ?? [];
    const kind = preset.task === 'generate' ? 'generate' : presetId;
    if (former !== presetId) this.needed = [];
    if (this.kind !== kind) this.length.use(this.model, kind);
    this.kind = kind;
    this.#lengthen();
    this.#changed();
  }

  /** What a person still has to give, as {param, message, urgent}; null when the order is complete. See missing.js. */
  missing() {
    return missing(this);
  }

  /** The order as it stands. Settings that are left alone are left out, so that the model's own apply. */
  order() {
    const { preset } = this;
    const order = { ...this.extra, model: this.model.id, task: preset.task, frames: this.length.value };
    for (const name of TEXTS) if (id(name).value.trim() || name === 'prompt') order[name] = id(name).value.trim();
    for (const name of NUMBERS) if (id(name).value !== '') order[name] = Number(id(name).value);
    if (id('fit').value !== 'crop') order.fit = id('fit').value;
    if (this.#size()) order.size = this.#size();
    if (id('lora').value)
      order.lora = [{ name: id('lora').value, scale: Number(id('scale').value || 1) }, ...this.otherLoras];
    const source = (name) => this.places[name].value?.src;
    const noise = this.extra.noise ?? 1 - id('hold').value / 100;
    if (preset.id === 'extend') Object.assign(order, { clip: source('clip'), direction: this.#direction(), noise });
    else if (preset.id === 'transition') Object.assign(order, { a: source('a'), b: source('b'), noise });
    else if (preset.id === 'edit')
      Object.assign(order, {
        init: { ...this.loadedInit, type: 'clip', src: source('init') },
        strength: Number(id('strength').value),
      });
    else if (preset.id !== 'text') order.conditions = this.timeline.value;
    return order;
  }

  /**
   * Fill the form with an order. Files that it needs and that are not here are asked for at their places. If the order
   * does not fit, the form is empty afterwards, and this rejects with `Refusal`.
   */
  async load(order) {
    const { id: name, longest } = this.model;
    if (order.frames > (longest ?? Infinity))
      throw new Refusal(`${order.frames} frames cannot be made: ${name} makes at most ${longest}.`);
    try {
      await this.#load(order);
    } catch (error) {
      await this.clear();
      throw error;
    }
  }

  async #load(order) {
    const conditions = order.conditions ?? [];
    this.needed = [];
    for (const name of [...TEXTS, ...NUMBERS]) id(name).value = order[name] ?? '';
    id('fit').value = order.fit ?? 'crop';
    this.#setSize(order.size ?? '');
    this.#setLoras(order.lora ?? []);
    setRange(id('strength'), order.strength ?? 0.6);
    setRange(id('hold'), Math.round(1e4 * (1 - [order.noise ?? 0].flat()[0])) / 100);
    document
      .querySelectorAll('[name=direction]')
      .forEach((one) => (one.checked = one.value === (order.direction ?? 'forward')));
    const isShown = (key, value) => SHOWN.includes(key) && !(key === 'noise' && Array.isArray(value));
    const isUsual = (key, value) => key === 'shift' && value === this.model.defaults.flow_shift;
    this.extra = Object.fromEntries(
      Object.entries(order).filter(([key, value]) => !isShown(key, value) && !isUsual(key, value)),
    );
    this.loadedInit = order.init ?? null;
    this.#showExtra();
    this.timeline.value = [];
    this.kind = null;
    this.choose(presetOf(order));
    if (order.frames) this.length.value = order.frames;
    this.#lengthen();
    await this.timeline.load(conditions.filter((one) => !one.src.missing));
    this.#ask(conditions.filter((one) => one.src.missing));
    for (const [name, place] of Object.entries(this.places)) {
      const src = name === 'init' ? order.init?.src : order[name];
      place.set(src && !src.missing ? await this.describe(src, 'clip') : null);
      if (src?.missing) this.needed.push({ param: name, name: src.missing, place });
    }
    this.#ranges();
    this.#changed();
  }

  /** Ask for the files of conditions at their places on the timeline. */
  #ask(conditions) {
    const grid = new Grid(this.timeline.clip);
    const frame = (one) => {
      const place = one.frame ?? one.at ?? 0;
      const found = grid.frameOf(place);
      if (found !== null) return found;
      throw new Refusal(`${one.src.missing} is at frame ${place}, outside the clip of ${grid.frames} frames.`);
    };
    this.expected = conditions.length + this.timeline.value.length;
    this.needed.push(...conditions.map((one) => ({ param: 'conditions', name: one.src.missing })));
    if (conditions.length)
      this.timeline.ghosts = conditions.map((one) => ({
        slot: grid.slotOf(frame(one)),
        label: one.src.missing,
        noise: one.noise ?? 0,
      }));
  }

  /** Put sources where the chosen task takes them; from text, they become a start picture or keyframes. */
  async take(transfer) {
    if (this.usesTimeline) {
      const sources = await this.timeline.open(transfer);
      if (sources.length && this.presetId === 'text')
        this.choose(sources.length > 1 || sources[0].kind === 'clip' ? 'keyframes' : 'image');
      return this.timeline.add(sources);
    }
    const place = Object.entries(this.places)
      .filter(([name]) => this.#placesInUse().includes(name))
      .map(([, one]) => one);
    return (place.find((one) => !one.value) ?? place[0]).take(transfer);
  }

  clear() {
    return this.load({});
  }

  // Parts of the form

  #listen(pick, open) {
    const settled = debounced(() => this.dispatchEvent(new Event('change')), SETTLED);
    const settle = () => {
      this.dispatchEvent(new Event('edit'));
      settled();
    };
    this.settle = settle;
    const form = id('composer');
    form.addEventListener('input', () => {
      this.#ranges();
      settle();
    });
    form.addEventListener('change', settle);
    id('lora').addEventListener('change', () =>
      this.#setLoras(id('lora').value ? [{ name: id('lora').value, scale: 1 }] : []),
    );
    id('frames').addEventListener('input', () => this.#lengthen());
    id('size').addEventListener('change', () => (id('own-size').hidden = id('size').value !== 'own'));
    this.timeline.addEventListener('change', () => this.#lengthen());
    this.places.init.addEventListener('change', () => this.#wholeClip());
    id('timeline-clips').addEventListener('click', async () => {
      const source = await pick();
      if (source) this.timeline.add([source]);
    });
    id('timeline-samples').addEventListener('click', () => this.#sample(open));
    id('extra')
      .querySelector('button')
      .addEventListener('click', () => {
        this.extra = {};
        this.#showExtra();
        this.#changed();
      });
  }

  #presets() {
    const fieldset = id('presets');
    fieldset.append(
      ...PRESETS.map((preset) => {
        const input = el('input', {
          type: 'radio',
          name: 'preset',
          value: preset.id,
          onchange: () => this.choose(preset.id),
        });
        return el(
          'label',
          { className: 'preset' },
          input,
          icon(preset.shape),
          el('span', { textContent: preset.name }),
        );
      }),
    );
  }

  #sizes({ defaults, size_multiple: multiple }) {
    const [width, height] = defaults.size;
    const round = (side) => Math.max(multiple, Math.round(side / multiple) * multiple);
    const square = round(Math.sqrt(width * height));
    const sizes = [
      [width, height],
      [height, width],
      [square, square],
      [round(width / 2), round(height / 2)],
    ].map((pair) => pair.join('x'));
    const words = (text, i) => `${text.replace('x', ' × ')}${i === 0 ? ' (the model’s own)' : ''}`;
    const options = [...new Set(sizes)].map((text, i) =>
      el('option', { value: i === 0 ? '' : text, textContent: words(text, i) }),
    );
    id('size').replaceChildren(...options, el('option', { value: 'own', textContent: 'Another size' }));
    for (const name of ['width', 'height'])
      Object.assign(id(name), { min: multiple, step: multiple, placeholder: defaults.size[name === 'width' ? 0 : 1] });
  }

  #size() {
    if (id('size').value !== 'own') return id('size').value;
    return ['width', 'height'].map((name) => id(name).value || id(name).placeholder).join('x');
  }

  #setSize(size) {
    const select = id('size');
    const own = this.model.defaults.size.join('x');
    const known = size === own ? '' : size;
    select.value = [...select.options].some((one) => one.value === known) ? known : 'own';
    if (select.value === 'own') [id('width').value, id('height').value] = size.split('x');
    id('own-size').hidden = select.value !== 'own';
  }

  #loras(names) {
    id('lora').replaceChildren(
      el('option', { value: '', textContent: 'none' }),
      ...names.map((name) => el('option', { value: name, textContent: name })),
    );
    id('lora-row').hidden = !names.length;
    this.#setLoras([]);
  }

  /** The form shows the first LoRA of an order and keeps the others. */
  #setLoras([first, ...others]) {
    id('lora').value = first?.name ?? '';
    id('scale').value = first?.scale ?? 1;
    this.otherLoras = others;
    id('scale-row').hidden = !id('lora').value;
  }

  #direction() {
    return document.querySelector('[name=direction]:checked').value;
  }

  #placesInUse() {
    return { extend: ['clip'], transition: ['a', 'b'], edit: ['init'] }[this.presetId] ?? [];
  }

  /** Give the timeline the chosen length; if something on it would be outside, say so and keep the old length. */
  #lengthen() {
    this.#ranges();
    this.refusedLength = null;
    if (!this.usesTimeline) return;
    try {
      const { defaults, frames_per_latent: group } = this.model;
      this.timeline.clip = { frames: this.length.value, fps: defaults.fps, group };
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.refusedLength = error.message;
    }
  }

  /** A clip to restyle is restyled whole, as far as the model reaches. */
  #wholeClip() {
    this.loadedInit = null;
    const frames = this.places.init.value?.frames;
    if (frames) this.length.value = Math.min(this.length.whole(frames), this.model.longest ?? Infinity);
    this.#ranges();
  }

  #ranges() {
    document.querySelector('#extend-area .joined').classList.toggle('before', this.#direction() === 'backward');
    const strength = Number(id('strength').value);
    id('strength').nextElementSibling.textContent =
      `${Math.round(100 * strength)} %${strength >= 0.95 ? ', everything' : strength <= 0.3 ? ', a little' : ''}`;
    const noise = 1 - id('hold').value / 100;
    id('hold').nextElementSibling.textContent = `${firmness(noise)}, ${id('hold').value} %`;
    this.length.show();
  }

  async #sample(open) {
    const next = SAMPLES.find((one) => !this.timeline.value.some((item) => item.src.name === one.file)) ?? SAMPLES[0];
    const added = this.timeline.add(await open({ files: [await sampleFile(next)] }));
    if (added && !id('prompt').value) this.#fill(next.prompt);
  }

  #fill(text) {
    id('prompt').value = text;
    this.#changed();
  }

  #showExtra() {
    const names = Object.keys(this.extra);
    id('extra').hidden = !names.length;
    id('extra').firstElementChild.textContent = `Settings that this form does not show are kept: ${names.join(', ')}.`;
  }

  #changed() {
    this.#ranges();
    this.settle();
  }
}

/** Set a slider to a value that may lie between its stops, or below the first one. */
function setRange(input, value) {
  if (value < Number(input.min)) input.min = value;
  input.step = Number.isInteger(Math.round((1e6 * value) / input.dataset.step) / 1e6) ? input.dataset.step : 'any';
  input.value = value;
}
