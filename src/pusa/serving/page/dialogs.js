/** Questions in a dialog. Each function resolves with the answer, or with null if the person closes the dialog. */
import * as api from './api.js';
import { button, el } from './dom.js';
import { title as shortTitle } from './sources.js';

let count = 0;

/** Delete these clips? */
export function confirmDelete(videos) {
  const what = videos.length === 1 ? `“${shortTitle(videos[0])}”` : `${videos.length} clips`;
  const text = el('p', { textContent: `${what} will be deleted from the server. This cannot be undone.` });
  return ask('Delete?', [text], { yes: 'Delete', no: 'Keep', danger: true }, () => true);
}

/** A finished clip, chosen from the gallery. */
export function pickClip(videos) {
  return dialog('Choose one of your clips', (close) => {
    if (!videos.length)
      return [
        el('p', { textContent: 'There is no finished clip yet: make one, or choose a file.' }),
        closing(close, 'Close'),
      ];
    const items = videos.map((video) => {
      const pick = button('', () => close(video), { className: 'open' });
      pick.append(
        el('img', { src: api.address(video.id, 'content?variant=thumbnail'), alt: '', loading: 'lazy' }),
        el('span', { className: 'name', textContent: video.prompt || 'a clip without words' }),
        el('span', { className: 'soft', textContent: `seed ${video.seed}` }),
      );
      return el('li', {}, pick);
    });
    return [el('ul', { className: 'cards' }, ...items), closing(close, 'Close')];
  });
}

/** The key of the server. `wrong` says that the last one was refused. */
export function askKey(wrong) {
  const input = el('input', { type: 'password', autocomplete: 'current-password', required: true });
  const parts = [
    el('p', { textContent: 'This server asks for a key. The person who runs it can give you one.' }),
    el('label', {}, 'Key ', input),
  ];
  if (wrong) parts.push(el('p', { className: 'error', role: 'alert', textContent: wrong }));
  return ask('A key is needed', parts, { yes: 'Continue' }, () => input.value);
}

/** How many seeds. */
export function askSeeds() {
  const input = el('input', { type: 'number', min: 2, max: 16, value: 4, required: true });
  const text = el('p', { textContent: 'The same settings, with several seeds. The clips are shown side by side.' });
  return ask('Several seeds', [text, el('label', {}, 'How many clips ', input)], { yes: 'Make them' }, () =>
    Number(input.value),
  );
}

/**
 * Two settings and their values. axes: {name: {label, short, values, min, max, whole}} to choose from, with usual
 * values as a text. Resolves with [{name, short, values: number[]}, …], the rows first.
 */
export function askGrid(axes, [rows, columns]) {
  const field = (legend, chosen) => {
    const select = el(
      'select',
      { 'aria-label': `${legend}: setting` },
      ...Object.entries(axes).map(([name, { label }]) => el('option', { value: name, textContent: label })),
    );
    const values = el('input', {
      type: 'text',
      required: true,
      inputMode: 'decimal',
      'aria-label': `${legend}: values`,
    });
    const usual = () => (values.value = axes[select.value].values);
    select.value = chosen;
    select.addEventListener('change', usual);
    usual();
    const error = el('p', { className: 'error', hidden: true, role: 'alert' });
    values.addEventListener('input', () => (error.hidden = true));
    return {
      element: el('fieldset', {}, el('legend', { textContent: legend }), select, values, error),
      select,
      values,
      error,
    };
  };
  const fields = [field('Rows', rows), field('Columns', columns)];
  const text = el('p', {
    textContent: 'One clip for each pair of values. Separate the values with commas. All clips have the same seed.',
  });
  const read = () => {
    fields.forEach((one) => (one.error.hidden = true));
    for (const one of fields) {
      const problem = wrongValues(one.values.value, axes[one.select.value]);
      if (problem) Object.assign(one.error, { textContent: problem, hidden: false });
      if (problem) return undefined;
    }
    if (fields[0].select.value === fields[1].select.value) {
      Object.assign(fields[1].error, {
        textContent: 'Rows and columns change the same setting: choose two.',
        hidden: false,
      });
      return undefined;
    }
    return fields.map(({ select, values }) => ({
      name: select.value,
      short: axes[select.value].short,
      values: numbers(values.value),
    }));
  };
  return ask('Compare settings', [text, ...fields.map((one) => one.element)], { yes: 'Make the clips' }, read);
}

function numbers(text) {
  return text
    .split(/[,;\s]+/)
    .filter(Boolean)
    .map(Number);
}

function wrongValues(text, { min, max, whole, label }) {
  const found = numbers(text);
  if (!found.length || found.length > 6) return 'Give one to six numbers, separated by commas.';
  const wrong = found.find((value) => !(value >= min && value <= max) || (whole && !Number.isInteger(value)));
  return wrong === undefined ? null : `${label}: give ${whole ? 'whole ' : ''}numbers from ${min} to ${max}.`;
}

/** A question with two buttons. `read` makes the answer; undefined keeps the dialog open. */
function ask(heading, parts, { yes, no = 'Cancel', danger = false }, read) {
  return dialog(heading, (close) => {
    const submit = (event) => {
      event.preventDefault();
      const answer = read();
      if (answer !== undefined) close(answer);
    };
    const confirm = el('button', { type: 'submit', textContent: yes, className: danger ? 'plain danger' : 'primary' });
    return [
      el(
        'form',
        { onsubmit: submit },
        ...parts,
        el(
          'div',
          { className: 'buttons' },
          confirm,
          button(no, () => close(null), { className: 'plain' }),
        ),
      ),
    ];
  });
}

function closing(close, text) {
  return el(
    'div',
    { className: 'buttons' },
    button(text, () => close(null), { className: 'plain' }),
  );
}

function dialog(heading, build) {
  return new Promise((resolve) => {
    const name = `dialog-${++count}`;
    const box = el('dialog', { 'aria-labelledby': name });
    const close = (answer) => {
      box.close();
      box.remove();
      resolve(answer);
    };
    box.addEventListener('cancel', (event) => {
      event.preventDefault();
      close(null);
    });
    box.append(el('h2', { id: name, textContent: heading }), ...build(close));
    document.body.append(box);
    box.showModal();
  });
}
