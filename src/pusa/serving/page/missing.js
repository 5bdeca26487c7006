/** What a person still has to give or to mend before the form is an order, as far as no server needs to be asked. */
const LARGEST = Number.MAX_SAFE_INTEGER; // JavaScript would round a larger whole number
const NUMBERS = {
  width: { least: 1, whole: true },
  height: { least: 1, whole: true },
  steps: { least: 1, most: 1000, whole: true },
  seed: { least: 0, whole: true },
  guidance: {},
  scale: {},
};
const SOURCES = {
  extend: [['clip', 'Choose the clip to continue.']],
  transition: [
    ['a', 'Choose the first clip.'],
    ['b', 'Choose the second clip.'],
  ],
  edit: [['init', 'Choose the clip to restyle.']],
};
const PICTURES = {
  image: 'Add a picture to start from, or choose “From text”.',
  ends: 'Add pictures or clips to the timeline, or choose “From text”.',
  keyframes: 'Add pictures or clips to the timeline, or choose “From text”.',
};

/**
 * All that is missing or wrong, as a list of {param, message, urgent}. What is urgent is said at once, and not only
 * when the clip is to be made.
 */
export function missing(composer) {
  const { refusedLength } = composer;
  const length = refusedLength ? [{ param: 'frames', message: refusedLength, urgent: true }] : [];
  const files = ofRecipe(composer);
  return [...files, ...(files.length ? [] : ofSources(composer)), ...length, ...ofNumbers()];
}

/** The files that the opened recipe names: that of each place, and of the timeline one after the other. */
function ofRecipe({ needed, timeline, expected }) {
  const here = timeline.value.map((one) => one.src.name);
  const onTimeline = timeline.value.length < expected ? needed.filter((one) => !one.place) : [];
  const next = onTimeline.find((one) => !here.includes(one.name)) ?? onTimeline[0];
  const files = [...needed.filter((one) => one.place && !one.place.value), ...(next ? [next] : [])];
  return files.map(({ param, name }) => ({
    param,
    message: `Add ${name} again: a recipe names its files and does not hold them.`,
    urgent: true,
  }));
}

/** Numbers that the browser could not read, that JavaScript would round, or that no model takes. */
function ofNumbers() {
  return Object.entries(NUMBERS)
    .map(([name, range]) => ({ param: name, message: wrong(document.getElementById(name), range), urgent: true }))
    .filter((one) => one.message);
}

function wrong(input, { least = -Infinity, most = Infinity, whole = false }) {
  if (input.closest('[hidden]')) return null;
  if (input.validity.badInput) return 'This is not a number: give one.';
  if (input.value === '') return null;
  const value = Number(input.value);
  if (value > LARGEST) return `This page takes numbers up to ${LARGEST}: give a smaller one.`;
  if (value >= least && value <= most && (!whole || Number.isInteger(value))) return null;
  const range = most < Infinity ? ` from ${least} to ${most}` : least > -Infinity ? ` from ${least} on` : '';
  return `${input.value} does not work here: give a ${whole ? 'whole ' : ''}number${range}.`;
}

function ofSources({ presetId, places, timeline }) {
  if (presetId in PICTURES && timeline.empty) return [{ param: 'conditions', message: PICTURES[presetId] }];
  const open = (SOURCES[presetId] ?? []).filter(([name]) => !places[name].value);
  return open.map(([param, message]) => ({ param, message }));
}
