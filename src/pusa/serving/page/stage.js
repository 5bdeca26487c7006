/**
 * The selected clip: how far it is while it is made, and the player, the facts and what to do with it when it is done.
 */
import * as api from './api.js';
import { active } from './clips.js';
import { button, el } from './dom.js';
import { small } from './timeline/files.js';

export class Stage {
  /**
   * @param {HTMLElement} element
   * @param {object} actions by name: again, edit, extend, use, useFrame, remove; each takes the video
   */
  constructor(element, clips, actions) {
    this.element = element;
    this.clips = clips;
    this.actions = actions;
    this.video = null;
  }

  /** Show a clip, or nothing. */
  show(video) {
    const same = this.video?.id === video?.id && this.video?.status === video?.status;
    this.video = video;
    this.element.hidden = !video;
    if (!video) return;
    if (!same) this.#build(video);
    if (active(video)) this.#progress(video);
  }

  #build(video) {
    const parts = { queued: this.#making, in_progress: this.#making, completed: this.#finished, failed: this.#failed };
    this.element.replaceChildren(
      el('h2', { className: 'prompt', textContent: video.prompt || 'A clip without words' }),
      ...parts[video.status].call(this, video),
    );
  }

  #making(video) {
    const [width, height] = video.size.split('x').map(Number);
    this.preview = el('img', { className: 'preview', alt: 'The clip so far', hidden: true, width, height });
    this.waiting = el('p', { className: 'waiting' });
    this.bar = el('progress', { max: 100, 'aria-label': 'Progress' });
    this.words = el('p', { className: 'soft words' });
    const box = el('div', { className: 'screen' }, this.preview, this.waiting);
    box.style.aspectRatio = `${width} / ${height}`;
    return [
      box,
      this.bar,
      this.words,
      el(
        'div',
        { className: 'buttons' },
        button('Cancel', () => this.actions.cancel(video), { className: 'plain' }),
      ),
    ];
  }

  #progress(video) {
    this.bar.value = video.progress ?? 0;
    this.words.textContent = inWords(video);
    const picture = this.clips.previews.get(video.id);
    this.waiting.textContent = video.status === 'queued' ? 'Waiting' : 'The first preview comes soon';
    this.waiting.hidden = Boolean(picture);
    this.preview.hidden = !picture;
    if (picture && this.preview.src !== picture) this.preview.src = picture;
  }

  #finished(video) {
    const player = el('pusa-player');
    const [width, height] = video.size.split('x').map(Number);
    queueMicrotask(() =>
      player.show(api.address(video.id), {
        fps: video.fps,
        frames: video.num_frames,
        width,
        height,
        label: video.prompt || 'The clip',
      }),
    );
    const { actions } = this;
    const useFrame = () => {
      const { video: picture, frame } = player;
      return actions.useFrame(video, frame, small(picture, picture.videoWidth, picture.videoHeight));
    };
    const buttons = el(
      'div',
      { className: 'buttons' },
      link('Download', api.address(video.id), `${video.id}.mp4`, 'primary'),
      button('Continue it', () => actions.extend(video), { className: 'plain' }),
      button('New seed', () => actions.again(video), { className: 'plain', title: 'Make it again with another seed' }),
      button('Edit and remake', () => actions.edit(video), {
        className: 'plain',
        title: 'Put all settings of this clip into the form',
      }),
      button('Use as a source', () => actions.use(video), {
        className: 'plain',
        title: 'Put this clip on the timeline',
      }),
      button('Use this frame', useFrame, { className: 'plain', title: 'Put the frame that is shown on the timeline' }),
      link('Recipe', api.address(video.id, 'recipe'), `${video.id}.json`, 'plain'),
      button('Delete', () => actions.remove([video]), { className: 'plain danger' }),
    );
    return [el('div', { className: 'screen' }, player), facts(video), ...noteList(video), buttons, this.#matrix(video)];
  }

  #failed(video) {
    const { actions } = this;
    return [
      el('p', {
        className: 'error',
        role: 'alert',
        textContent: video.error?.message ?? 'The clip could not be made.',
      }),
      facts(video),
      el(
        'div',
        { className: 'buttons' },
        button('Edit and remake', () => actions.edit(video), { className: 'primary' }),
        button('Try again', () => actions.again(video, video.seed), { className: 'plain' }),
        button('Delete', () => actions.remove([video]), { className: 'plain danger' }),
      ),
    ];
  }

  #matrix(video) {
    const map = el('pusa-matrix');
    const details = el('details', { className: 'how' }, el('summary', { textContent: 'How it was made' }), map);
    details.addEventListener('toggle', async () => {
      if (!details.open || map.children.length) return;
      try {
        const group = this.actions.model(video)?.frames_per_latent ?? 4;
        map.show({ ...(await api.matrix(video.id)), fps: video.fps, group, part: video.task !== 'generate' });
      } catch (error) {
        map.replaceChildren(el('p', { className: 'error', textContent: error.message }));
      }
    });
    return details;
  }
}

/** "Step 3 of 10, about 4 s left" */
export function inWords(video) {
  if (video.status === 'queued') {
    const before = video.queue_position ?? 0;
    return before === 0 ? 'Next in the queue' : `${before} ${before === 1 ? 'clip' : 'clips'} before this one`;
  }
  const left =
    video.eta_seconds === null || video.eta_seconds === undefined ? '' : `, about ${duration(video.eta_seconds)} left`;
  return video.step ? `Step ${video.step} of ${video.num_inference_steps}${left}` : `Starting${left}`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function facts(video) {
  const task = { extend: 'continued clip', transition: 'filled gap' }[video.task];
  const all = [
    task,
    `${video.num_frames} frames, ${(video.num_frames / video.fps).toFixed(1)} s`,
    video.size.replace('x', ' × '),
    `${video.num_inference_steps} steps`,
    `seed ${video.seed}`,
    video.model,
  ];
  return el('p', { className: 'facts soft', textContent: all.filter(Boolean).join(' · ') });
}

function noteList(video) {
  return video.notes?.length
    ? [el('ul', { className: 'notes' }, ...video.notes.map((text) => el('li', { textContent: text })))]
    : [];
}

function link(text, href, download, className) {
  return el('a', { href, download, className, textContent: text });
}
