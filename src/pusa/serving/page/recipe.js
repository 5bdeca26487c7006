/** Recipe files (sidecars): whether a file is one, and the order that it describes. */
import { withSources } from './requests.js';

const LARGEST = 1e8; // bytes; a recipe with a matrix for the longest clip has fewer
const RECORDED = [
  'version',
  'model',
  'loras',
  'versions',
  'processes',
  'result',
  'request',
  'own_matrix',
  'variant_of',
  'acceleration',
];
const USUAL = { guidance_batch: 'auto', solver: 'euler', fit: 'crop', negative_prompt: '', direction: 'forward' };
const STORED = /^(?:source_\d+-)?(video_[0-9a-f]{32})\.mp4$/; // how the server names its own clips in a recipe

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);
const isWhole = (value) => Number.isSafeInteger(value) && value > 0;
const isLevel = (value) => typeof value === 'number' && value >= 0 && value <= 1;
const text = [(value) => typeof value === 'string', 'a text'];
const number = [(value) => typeof value === 'number', 'a number'];
const choice = (...names) => [(value) => names.includes(value), names.map((one) => `"${one}"`).join(' or ')];
const source = [(value) => isObject(value) || text[0](value), 'the name of a file'];
const noise = [
  (value) => isLevel(value) || (Array.isArray(value) && value.length > 0 && value.every(isLevel)),
  'a number from 0 to 1, or a list of them',
];
/** Fields that the form could not show as they are if they were anything else: [whether it is right, what is]. */
const FIELDS = {
  task: choice('generate', 'extend', 'transition'),
  prompt: text,
  negative_prompt: text,
  steps: number,
  seed: number,
  guidance: number,
  frames: [isWhole, 'a whole number from 1 on'],
  size: [
    (value) => (text[0](value) ? value.split('x').map(Number) : [value].flat()).filter(isWhole).length === 2,
    'a width and a height in pixels',
  ],
  fit: choice('crop', 'pad', 'stretch'),
  strength: [isLevel, 'a number from 0 to 1'],
  noise,
  direction: choice('forward', 'backward'),
  lora: [(value) => Array.isArray(value) && value.every(isObject), 'a list of LoRAs'],
  clip: source,
  a: source,
  b: source,
  init: source,
  conditions: [
    (value) => Array.isArray(value) && value.every((one) => isObject(one) && ['image', 'clip'].includes(one.type)),
    'a list of pictures and clips',
  ],
};

/**
 * The order that a recipe file describes.
 *
 * A recipe holds no pictures and clips. A clip that the server still has becomes {video: ID}, every other source
 * {missing: NAME}. Throws an error with one sentence if the file is no recipe, or if the form could not show it.
 * @param {(id: string) => Promise<boolean>} isStored whether the server has a finished clip
 */
export async function openRecipe(file, isStored) {
  const recipe = await read(file);
  check(recipe, file.name);
  const unused = [
    ...RECORDED,
    ...(recipe.own_matrix ? ['shift', 'schedule'] : ['matrix']),
    ...(recipe.init ? [] : ['strength']),
  ];
  const said = Object.entries(recipe).filter(([key, value]) => !unused.includes(key) && value !== USUAL[key]);
  const order = withSources(Object.fromEntries(said), (src) => ({ missing: nameOf(src) }));
  return withStored(order, isStored);
}

async function read(file) {
  const refusal = new Error(`${file.name} is no recipe of a clip: choose the .json file that was saved with one.`);
  if (file.size > LARGEST) throw refusal;
  let recipe;
  try {
    recipe = JSON.parse(await file.text());
  } catch {
    throw refusal;
  }
  if (!isObject(recipe) || !('prompt' in recipe)) throw refusal;
  return recipe;
}

function check(recipe, name) {
  refuseWrong(recipe, FIELDS, name, '');
  recipe.conditions?.forEach((one, i) => refuseWrong(one, { noise }, name, `conditions[${i}].`));
}

function refuseWrong(values, fields, name, prefix) {
  for (const [field, [isRight, what]] of Object.entries(fields)) {
    const value = values[field] ?? null;
    if (value === null || isRight(value)) continue;
    const told = JSON.stringify(value);
    const short = told.length > 60 ? `${told.slice(0, 57)}…` : told;
    throw new Error(`${name} cannot be opened: ${prefix}${field} is ${short} and must be ${what}.`);
  }
}

function nameOf(src) {
  return String(src.path ?? src.source ?? src.video)
    .split(/[\\/]/)
    .at(-1);
}

async function withStored(order, isStored) {
  const names = new Set();
  withSources(order, (src) => (names.add(src.missing), src));
  const ids = [...names].map((name) => [name, name.match(STORED)?.[1]]).filter(([, id]) => id);
  const known = await Promise.all(ids.map(([, id]) => isStored(id)));
  const found = Object.fromEntries(ids.filter((_, i) => known[i]));
  return withSources(order, (src) => (src.missing in found ? { video: found[src.missing] } : src));
}
