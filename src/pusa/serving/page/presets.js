/**
 * What a person can ask for, by name: which inputs each task shows, and the picture on its button.
 *
 * shape: five signs, "#" for what is given, "=" for a clip that is changed, "." for what the model makes. ghosts:
 * places on the timeline that ask to be filled; slot −1 is the last.
 */
import { svg } from './dom.js';

export const PRESETS = [
  {
    id: 'text',
    name: 'From text',
    shape: '.....',
    task: 'generate',
    hint: 'Describe the clip. The model makes every frame.',
  },
  {
    id: 'image',
    name: 'From a picture',
    shape: '#....',
    task: 'generate',
    hint: 'Your picture becomes the first frame, and the model makes the rest.',
    ghosts: [{ slot: 0, label: 'First frame' }],
  },
  {
    id: 'ends',
    name: 'Start and end',
    shape: '#...#',
    task: 'generate',
    hint: 'Two pictures are the first and the last frame. The model finds the way between them.',
    ghosts: [
      { slot: 0, label: 'First frame' },
      { slot: -1, label: 'Last frame' },
    ],
  },
  {
    id: 'keyframes',
    name: 'Keyframes',
    shape: '#.#.#',
    task: 'generate',
    hint: 'Put pictures and clips anywhere. The model makes the frames between them.',
    ghosts: [],
  },
  {
    id: 'extend',
    name: 'Continue a clip',
    shape: '##...',
    task: 'extend',
    hint: 'The model makes what comes after your clip, or before it.',
  },
  {
    id: 'transition',
    name: 'Fill a gap',
    shape: '##.##',
    task: 'transition',
    hint: 'The model makes the frames that lead from one clip to another.',
  },
  {
    id: 'edit',
    name: 'Restyle a clip',
    shape: '=====',
    task: 'generate',
    hint: 'The motion of your clip stays, and the words change what it shows.',
  },
];

/** The preset that shows a request. */
export function presetOf(request) {
  if (request.task === 'extend' || request.task === 'transition') return request.task;
  if (request.init) return 'edit';
  const conditions = request.conditions ?? [];
  if (!conditions.length) return 'text';
  const pictures = conditions.every((one) => one.type === 'image');
  const places = conditions.map((one) => String(one.frame ?? 0)).join();
  if (pictures && places === '0') return 'image';
  return pictures && conditions.length === 2 && places.startsWith('0,') ? 'ends' : 'keyframes';
}

/** The small picture of a preset: given frames filled, frames to make outlined. */
export function icon(shape) {
  const cells = [...shape].map((sign, i) =>
    svg('rect', {
      x: i * 9 + 1,
      y: 1,
      width: 7,
      height: 14,
      rx: 1.5,
      class: { '#': 'given', '=': 'changed', '.': 'made' }[sign],
    }),
  );
  return svg('svg', { viewBox: '0 0 45 16', 'aria-hidden': 'true', class: 'shape' }, ...cells);
}
