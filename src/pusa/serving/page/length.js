/** The length of a clip on a slider that stops only at lengths that the model can make. */
const REACH = 4; // the slider goes to so many times the model's own length; a model makes longer clips worse

export class LengthControl {
  /** @param {HTMLInputElement} input a range with an output after it */
  constructor(input) {
    this.input = input;
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
    Object.assign(this.input, { min: this.added ? group : 1 + group, step: group, max: limit });
    this.value = usual;
  }

  get value() {
    return Number(this.input.value);
  }

  set value(frames) {
    if (frames > Number(this.input.max)) this.input.max = frames; // a loaded request may be longer; the server decides
    if (frames < Number(this.input.min)) this.input.min = frames;
    this.input.value = frames;
    this.show();
  }

  /** The longest length of the model's form that `frames` frames fill. */
  whole(frames) {
    return Math.floor((frames - 1) / this.group) * this.group + 1;
  }

  show() {
    const seconds = (this.value / this.fps).toFixed(1);
    const text = `${this.value} frames${this.added ? ' are added' : ''}, ${seconds} s`;
    this.input.nextElementSibling.textContent = text;
    this.input.setAttribute('aria-valuetext', text);
  }
}
