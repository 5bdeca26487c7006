/**
 * All clips of this key: those that wait, those that are being made, and those that are finished.
 *
 * The list comes from the server and is kept up to date by its events, so a restart of the page or of the server loses
 * nothing. Events: "change" {detail: video}, "removed" {detail: id}, "list" after the whole list was read again,
 * "connection" {detail: null | sentence}, "locked" when the server asks for a key.
 */
import * as api from './api.js';

const RETRY = 2000; // milliseconds

export const active = (video) => video.status === 'queued' || video.status === 'in_progress';

export class Clips extends EventTarget {
  #videos = new Map();
  previews = new Map();
  more = false;

  /** All clips, newest first. */
  get all() {
    return [...this.#videos.values()];
  }

  get(id) {
    return this.#videos.get(id) ?? null;
  }

  /** Follow the events for as long as the page lives. The list is read after they begin, so that none is missed. */
  async start() {
    if (this.started) return;
    this.started = true;
    for (;;) {
      try {
        await api.events(
          '/v1/events',
          (event, data) => this.#event(event, data),
          () => this.#read(),
        );
      } catch (error) {
        if (error.status === 401) {
          this.started = false;
          this.#tell('locked');
          return;
        }
        if (!(error instanceof TypeError)) this.#tell('connection', error.message);
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }

  /** Read the list again, for a page that was out of sight. What the events have told meanwhile is in it, too. */
  async refresh() {
    try {
      if (this.started) await this.#read();
    } catch {
      // The loop of `start` says what is wrong.
    }
  }

  /** Read the page of older clips. */
  async older() {
    const page = await api.list(this.all.at(-1)?.id);
    page.data.forEach((video) => this.#videos.set(video.id, video));
    this.more = page.has_more;
    this.#tell('list');
  }

  /** Enter a new clip, unless an event about it came before the answer to its order. */
  enter(video) {
    if (!this.#videos.has(video.id)) this.#put(video);
  }

  /** Whether the server has this clip, finished. */
  async isFinished(id) {
    try {
      return (await api.get(id)).status === 'completed';
    } catch (error) {
      if (error.status === 404) return false;
      throw error;
    }
  }

  #put(video) {
    if (this.#videos.has(video.id)) this.#videos.set(video.id, video);
    else this.#videos = new Map([[video.id, video], ...this.#videos]);
    if (!active(video)) this.previews.delete(video.id);
    this.#tell('change', video);
  }

  async remove(id) {
    await api.remove(id);
    this.#drop(id);
  }

  async #read() {
    const page = await api.list();
    const oldest = page.data.at(-1)?.created_at ?? 0;
    const kept = page.has_more ? this.all.filter((one) => one.created_at < oldest) : [];
    this.#videos = new Map([...page.data, ...kept].map((video) => [video.id, video]));
    if (!kept.length) this.more = page.has_more;
    this.#tell('connection', null);
    this.#tell('list');
  }

  #event(event, data) {
    if (event === 'status') this.#put(data);
    else if (event === 'deleted') this.#drop(data.id);
    else this.#stepped(event, data);
  }

  #drop(id) {
    this.#videos.delete(id);
    this.previews.delete(id);
    this.#tell('removed', id);
  }

  /** A step or a preview of a clip that is being made. */
  #stepped(event, { id, image, ...data }) {
    const video = this.get(id);
    if (!video) return;
    if (event === 'preview') this.previews.set(id, image);
    if (event === 'progress')
      this.#videos.set(id, { ...video, step: data.step, progress: data.progress, eta_seconds: data.eta_seconds });
    this.#tell('change', this.get(id));
  }

  #tell(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
