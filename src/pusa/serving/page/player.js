/**
 * <pusa-player>: a clip with play, loop, and steps of one frame.
 *
 * `show(address, {fps, frames, width, height, label})` loads a clip. `frame` is the frame that is shown. Space plays
 * and pauses, and the arrow keys step, while the picture or a control of the player has the focus.
 */
import { button, el } from './dom.js';

export const still = () => matchMedia('(prefers-reduced-motion: reduce)').matches;
const TINY = 200; // pixels of width below which a clip is enlarged without smoothing

export class PusaPlayer extends HTMLElement {
  connectedCallback() {
    if (this.video) return;
    this.video = el('video', { muted: true, loop: true, playsInline: true, preload: 'auto', tabIndex: 0 });
    this.playButton = button('Play', () => this.toggle(), { className: 'plain' });
    this.range = el('input', {
      type: 'range',
      min: 0,
      value: 0,
      'aria-label': 'Frame',
      oninput: () => this.seek(Number(this.range.value)),
    });
    this.readout = el('output', { className: 'soft' });
    const loop = el('input', { type: 'checkbox', checked: true, onchange: () => (this.video.loop = loop.checked) });
    const steps = [
      button('‹', () => this.seek(this.frame - 1), { className: 'plain', 'aria-label': 'One frame back' }),
      button('›', () => this.seek(this.frame + 1), { className: 'plain', 'aria-label': 'One frame on' }),
    ];
    this.failure = el('p', {
      className: 'error',
      hidden: true,
      textContent: 'The browser cannot play this clip. Download it, and open it in another program.',
    });
    this.append(
      this.video,
      this.failure,
      this.range,
      el(
        'div',
        { className: 'controls' },
        this.playButton,
        ...steps,
        this.readout,
        el('label', { className: 'loop' }, loop, ' Loop'),
      ),
    );
    for (const event of ['play', 'pause', 'ended']) this.video.addEventListener(event, () => this.#state());
    for (const event of ['seeked', 'timeupdate', 'loadeddata']) this.video.addEventListener(event, () => this.#tell());
    this.video.addEventListener('error', () => (this.failure.hidden = !this.video.hasAttribute('src')));
    this.video.addEventListener('click', () => this.toggle());
    this.addEventListener('keydown', (event) => this.#key(event));
  }

  show(address, { fps, frames, width, height, label }) {
    this.clip = { fps, frames };
    this.failure.hidden = true;
    this.range.max = frames - 1;
    this.video.setAttribute('aria-label', `${label}. Space plays, and the arrow keys step.`);
    this.video.width = width;
    this.video.height = height;
    this.video.classList.toggle('tiny', width < TINY);
    this.video.src = address;
    if (!still()) this.play();
    this.#state();
  }

  get frame() {
    const { fps, frames } = this.clip;
    return Math.max(0, Math.min(frames - 1, Math.floor(this.video.currentTime * fps + 0.01)));
  }

  /** Pause at a frame. */
  seek(frame) {
    const { fps, frames } = this.clip;
    this.video.pause();
    this.video.currentTime = (Math.max(0, Math.min(frames - 1, frame)) + 0.5) / fps;
    this.#tell();
  }

  play() {
    this.video.play().catch(() => {}); // a browser may refuse to start by itself; the button still plays
    this.#follow();
  }

  toggle() {
    if (this.video.paused) this.play();
    else this.video.pause();
  }

  #follow() {
    if (!this.video.requestVideoFrameCallback) return;
    this.video.requestVideoFrameCallback(() => {
      this.#tell();
      if (!this.video.paused && this.isConnected) this.#follow();
    });
  }

  #state() {
    this.playButton.textContent = this.video.paused ? 'Play' : 'Pause';
  }

  #tell() {
    const { frame } = this;
    this.range.value = frame;
    this.readout.textContent = `Frame ${frame} · ${(frame / this.clip.fps).toFixed(2)} s`;
    this.range.setAttribute('aria-valuetext', this.readout.textContent);
  }

  #key(event) {
    if (event.target !== this.video) return;
    const actions = {
      ' ': () => this.toggle(),
      ArrowLeft: () => this.seek(this.frame - 1),
      ArrowRight: () => this.seek(this.frame + 1),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }
}

customElements.define('pusa-player', PusaPlayer);
