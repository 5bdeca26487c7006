/** The length of a clip on a slider that stops only at lengths that the model can make. */
const REACH = 4; // the slider goes to so many times the model's own length; a model makes longer clips worse

export class LengthControl {
  /** @param {HTMLInputElement} input a range with an output after it */
  constructor(input) {
    this.input = input;
    input.addEventListener('input', () => this.#snap());
  }

  /** kind: "generate" counts the whole clip; "extend" and "transition" count the frames that are added. */
  use(model, kind) {
    const { frames_per_latent: group, longest, defaults } = model;
    this.group = group;
    this.fps = defaults.fps;
    this.added = kind !== 'generate';
    const most = Math.min(longest ?? Infinity, REACH * (defaults.num_frames - 1) + 1);
    const overlap = Math.min(3 * group + 1, Math.floor(defaults.num_frames / (4 * group)) * group + 1);
    const clips = { extend: 1, transition: 2 }[kind];
    const usual = this.added ? Math.max(group, defaults.num_frames - clips * overlap + clips - 1) : defaults.num_frames;
    const limit = this.added ? Math.max(group, most - clips * overlap + clips - 1) : most;
    this.first = this.added ? group : 1 + group;
    Object.assign(this.input, { min: this.first, step: group, max: limit });
    this.value = usual;
  }

  get value() {
    return Number(this.input.value);
  }

  /** A loaded request may have a length between or beyond the stops. It is kept as it is; the server decides. */
  set value(frames) {
    this.input.step = this.#isStop(frames) ? this.group : 1;
    if (frames > Number(this.input.max)) this.input.max = frames;
    if (frames < Number(this.input.min)) this.input.min = frames;
    this.input.value = frames;
    this.show();
  }

  /** The longest length of the model's form that `frames` frames fill. */
  whole(frames) {
    return Math.floor((frames - 1) / this.group) * this.group + 1;
  }

  /** Back to the stops, when a person moves the slider. */
  #snap() {
    if (!this.#isStop(Number(this.input.min))) this.input.min = this.first;
    this.input.step = this.group;
  }

  #isStop(frames) {
    return (frames - this.first) % this.group === 0;
  }

  show() {
    const seconds = (this.value / this.fps).toFixed(1);
    const text = `${this.value} frames${this.added ? ' are added' : ''}, ${seconds} s`;
    this.input.nextElementSibling.textContent = text;
    this.input.setAttribute('aria-valuetext', text);
  }
}
