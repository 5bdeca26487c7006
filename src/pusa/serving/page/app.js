/** The page: joins the form, the clips of the server, the stage and the gallery. */
import * as api from './api.js';
import { active, Clips } from './clips.js';
import { ComparisonView, Comparisons } from './comparisons.js';
import { Composer } from './composer.js';
import * as dialogs from './dialogs.js';
import { button, el } from './dom.js';
import { Gallery } from './gallery.js';
import './matrix.js';
import './player.js';
import { Problems } from './problems.js';
import { openRecipe } from './recipe.js';
import { again } from './requests.js';
import './source.js';
import { described, finished, frameOf, fromTransfer, title } from './sources.js';
import { Stage } from './stage.js';
import './timeline/timeline.js';
import { axes, variants } from './variants.js';

const id = (name) => document.getElementById(name);
const narrow = () => matchMedia('(max-width: 60rem)').matches;

class Page {
  clips = new Clips();
  comparisons = new Comparisons();
  models = [];

  constructor() {
    const fps = () => this.composer.model.defaults.fps;
    this.composer = new Composer({
      open: (transfer) => fromTransfer(transfer, this.clips, fps()),
      describe: (src, kind) => described(src, kind, this.clips, fps()),
      pick: async () => {
        const video = await dialogs.pickClip(this.#made());
        return video && finished(video);
      },
    });
    this.problems = new Problems(this.composer, (text) => this.#announce(text));
    const select = (chosen) => this.select(chosen);
    const remove = (videos) => this.#remove(videos);
    const cancel = (video) => this.#try(() => this.clips.remove(video.id));
    this.stage = new Stage(id('stage'), this.clips, {
      remove,
      cancel,
      again: (video, seed) => this.#try(() => this.#make({ ...again(video), seed: seed ?? newSeed() })),
      edit: (video) => this.#load(again(video)),
      extend: (video) =>
        this.#load({ task: 'extend', clip: { video: video.id }, prompt: video.prompt, model: video.model }),
      use: (video) => this.#use(() => finished(video)),
      useFrame: (video, frame, thumb) => this.#use(async () => frameOf(video, frame, thumb)),
      model: (video) => this.models.find((one) => one.id === video.model),
    });
    this.gallery = new Gallery(this.clips, {
      select,
      remove,
      cancel,
      fill: (a, b) =>
        this.#load({ task: 'transition', a: { video: a.id }, b: { video: b.id }, prompt: b.prompt, model: a.model }),
      compare: (videos) =>
        this.#compare({
          title: 'Side by side',
          rows: [''],
          columns: videos.map((one) => `${title(one)}, seed ${one.seed}`),
          cells: [videos.map((one) => one.id)],
        }),
    });
    this.#listen();
  }

  async start() {
    try {
      this.models = await api.models();
    } catch (error) {
      if (error.status === 401) return this.#unlock();
      this.#connection(error.message);
      setTimeout(() => this.start(), 2000);
      return undefined;
    }
    const select = id('model');
    select.replaceChildren(...this.models.map((one) => el('option', { value: one.id, textContent: one.id })));
    const only = this.models.length === 1;
    Object.assign(select.nextElementSibling, { hidden: !only, textContent: this.models[0].id });
    select.hidden = only;
    this.composer.model = this.models[0];
    return this.clips.start();
  }

  /** Show a clip on the stage. */
  select(chosen, reveal = true) {
    this.selected = chosen;
    this.comparison = null;
    this.stage.video = null;
    this.#show();
    if (reveal) this.#reveal(id('stage'));
  }

  // Showing

  #show() {
    if (this.comparison) this.comparison.show();
    else this.stage.show(this.clips.get(this.selected));
    this.gallery.show(this.comparison ? null : this.selected);
    const known = this.comparisons.all.map((one) => {
      const open = button(one.title, () => this.#open(one), { className: 'chip' });
      return el('li', {}, open);
    });
    const list = id('comparisons');
    if (list.textContent !== known.map((one) => one.textContent).join('')) list.replaceChildren(...known);
    list.hidden = !known.length;
  }

  #open(comparison) {
    this.selected = null;
    id('stage').hidden = false;
    this.comparison = new ComparisonView(id('stage'), this.clips, comparison, {
      select: (chosen) => this.select(chosen),
      drop: () => {
        this.comparisons.drop(comparison.id);
        this.select(null, false);
      },
    });
    this.#show();
    this.#reveal(id('stage'));
  }

  #compare(comparison) {
    this.#open(this.comparisons.add(comparison));
  }

  #reveal(element) {
    if (narrow() || element.getBoundingClientRect().top < 0) element.scrollIntoView({ block: 'start' });
  }

  #connection(text) {
    id('connection').textContent = text ?? '';
    document.body.classList.toggle('offline', Boolean(text));
  }

  #announce(text) {
    id('announce').textContent = text;
  }

  // Doing

  async #make(order) {
    const video = await api.create(order);
    this.clips.enter(video);
    this.select(video.id, narrow());
    return video;
  }

  async #submit() {
    this.problems.clear();
    const { composer } = this;
    if (composer.missing().length) return this.problems.insist();
    const make = id('make');
    const { textContent } = make;
    Object.assign(make, { disabled: true, textContent: 'Sending…' });
    await this.#try(() => this.#make(composer.order()));
    Object.assign(make, { disabled: false, textContent });
    return undefined;
  }

  async #several(chosen) {
    if (!chosen) return;
    if (this.composer.missing().length) {
      this.problems.insist();
      return;
    }
    const base = this.composer.order();
    await this.#try(async () => {
      const { orders, ...comparison } = variants({ seed: newSeed(), ...base }, chosen);
      const cells = [];
      for (const row of orders) {
        cells.push([]);
        for (const order of row) {
          const video = await api.create(order);
          this.clips.enter(video);
          cells.at(-1).push(video.id);
        }
      }
      this.#compare({ ...comparison, title: `${comparison.title}: ${base.prompt || 'without words'}`, cells });
    });
  }

  async #load(order) {
    await this.#try(async () => {
      const model = this.models.find((one) => one.id === order.model);
      if (model) id('model').value = model.id;
      if (model) this.composer.model = model;
      await this.composer.load(order);
      this.#reveal(id('composer'));
      id('prompt').focus({ preventScroll: true });
    });
  }

  async #openRecipe(file) {
    if (!file) return;
    await this.#try(async () => this.#load(await openRecipe(file, (video) => this.clips.isFinished(video))));
  }

  async #use(source) {
    await this.#try(async () => {
      const found = await source();
      const { composer } = this;
      if (!composer.usesTimeline || composer.presetId === 'text')
        composer.choose(found.kind === 'image' ? 'image' : 'keyframes');
      composer.timeline.add([found]);
      this.#reveal(id('composer'));
    });
  }

  async #remove(videos) {
    if (!(await dialogs.confirmDelete(videos))) return;
    await this.#try(async () => {
      for (const video of videos) await this.clips.remove(video.id);
      this.#announce(videos.length === 1 ? 'The clip was deleted.' : `${videos.length} clips were deleted.`);
    });
  }

  async #unlock(wrong = '') {
    const key = await dialogs.askKey(wrong);
    try {
      if (key) await api.session(key);
    } catch (error) {
      return this.#unlock(error.message);
    }
    return key ? this.start() : this.#connection('A key is needed: load the page again to enter it.');
  }

  /** Do something, and show what goes wrong where it belongs. */
  async #try(work) {
    try {
      await work();
    } catch (error) {
      if (error.status === 401) await this.#unlock();
      else this.problems.fail(error);
    }
  }

  #made() {
    return this.clips.all.filter((video) => video.status === 'completed');
  }

  // Events

  #listen() {
    const { clips, composer } = this;
    id('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit();
    });
    composer.addEventListener('edit', () => this.problems.edited());
    composer.addEventListener('change', () => this.problems.check());
    id('model').addEventListener(
      'change',
      () => (composer.model = this.models.find((one) => one.id === id('model').value)),
    );
    id('clear').addEventListener('click', () => composer.clear());
    id('recipe').addEventListener('change', (event) => {
      this.#openRecipe(event.target.files[0]);
      event.target.value = '';
    });
    id('seeds').addEventListener('click', async () => this.#several(seedsAxis(await dialogs.askSeeds())));
    id('grid').addEventListener('click', async () => {
      const settings = axes(composer);
      this.#several(await dialogs.askGrid(settings, Object.keys(settings)));
    });
    clips.addEventListener('list', () => this.#show());
    clips.addEventListener('removed', () => this.#show());
    clips.addEventListener('change', ({ detail }) => this.#changed(detail));
    clips.addEventListener('connection', ({ detail }) => this.#connection(detail));
    clips.addEventListener('locked', () => this.#unlock());
    document.addEventListener('visibilitychange', () => document.hidden || clips.refresh());
    window.addEventListener('dragover', (event) => event.preventDefault());
    window.addEventListener('drop', (event) => {
      event.preventDefault();
      this.#try(() => composer.take(event.dataTransfer));
    });
    document.addEventListener('paste', (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.#try(() => composer.take(event.clipboardData));
    });
  }

  #states = new Map();

  #changed(video) {
    const former = this.#states.get(video.id);
    this.#states.set(video.id, video.status);
    if (former && former !== video.status && !active(video)) {
      this.#announce(
        video.status === 'completed'
          ? `The clip is finished: ${title(video)}`
          : `The clip failed: ${video.error?.message ?? ''}`,
      );
    }
    this.#show();
  }
}

function newSeed() {
  return Math.floor(Math.random() * 2 ** 31);
}

function seedsAxis(number) {
  return number && [null, { name: 'seed', short: 'seed', count: number }];
}

new Page().start();
