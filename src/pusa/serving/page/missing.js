/** What a person still has to give before the form is an order, and what no server needs to be asked about. */
const NUMBERS = ['steps', 'seed', 'guidance'];
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
 * The first thing that is missing, as {param, message, urgent}, or null. It is urgent if it is said at once, and not
 * only when the clip is to be made.
 */
export function missing(composer) {
  return ofRecipe(composer) ?? ofNumbers() ?? ofSources(composer);
}

/** A file that the opened recipe names. */
function ofRecipe({ needed, timeline, expected }) {
  const file = needed.find((one) => (one.place ? !one.place.value : timeline.value.length < expected));
  if (!file) return null;
  const message = `Add ${file.name} again: a recipe names its files and does not hold them.`;
  return { param: file.param, message, urgent: true };
}

/** A number that the browser could not read, or that JavaScript would round. */
function ofNumbers() {
  for (const name of NUMBERS) {
    const input = document.getElementById(name);
    if (input.validity.badInput) return { param: name, message: 'This is not a number: give one.', urgent: true };
    if (Number(input.value) > Number.MAX_SAFE_INTEGER) {
      const message = `This page takes numbers up to ${Number.MAX_SAFE_INTEGER}: give a smaller one.`;
      return { param: name, message, urgent: true };
    }
  }
  return null;
}

function ofSources({ presetId, places, timeline }) {
  if (presetId in PICTURES && timeline.empty) return { param: 'conditions', message: PICTURES[presetId] };
  const [param, message] = SOURCES[presetId]?.find(([name]) => !places[name].value) ?? [];
  return param ? { param, message } : null;
}
