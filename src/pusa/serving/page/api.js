/** The HTTP interface of the server, as `docs/serving.md` describes it. Nothing else in the page sends requests. */

/**
 * What the server refused. `message` is one sentence for a person; `param` names the field that is wrong, or is null.
 */
export class ApiError extends Error {
  constructor(status, { message, param = null, code = null } = {}) {
    super(message ?? `The server answered with status ${status} and no explanation.`);
    this.status = status;
    this.param = param;
    this.code = code;
  }
}

/** The server could not be reached. */
export class Unreachable extends Error {
  constructor() {
    super('The server does not answer. Check that it runs; this page tries again by itself.');
  }
}

export const models = async () => (await json('GET', '/v1/models')).data;
export const get = (id) => json('GET', `/v1/videos/${id}`);
export const remove = (id) => json('DELETE', `/v1/videos/${id}`);
export const matrix = (id) => json('GET', `/v1/videos/${id}/matrix`);
export const session = (key) => json('POST', '/session', { key });

/** One page of finished and waiting clips, newest first. */
export function list(after = null, limit = 60) {
  const query = new URLSearchParams({ limit, order: 'desc', ...(after ? { after } : {}) });
  return json('GET', `/v1/videos?${query}`);
}

/** Order a clip. `key` makes a repeated order harmless. */
export function create(request, key = crypto.randomUUID?.() ?? String(Math.random())) {
  return send('/v1/videos', request, { headers: { 'Idempotency-Key': key } });
}

/** What the server says about a request without making anything. */
export function check(request, signal) {
  return send('/v1/videos/check', request, { signal });
}

/** The address of a file of a clip: "content", "content?variant=thumbnail", "recipe", "sources/source_0". */
export function address(id, file = 'content') {
  return `/v1/videos/${id}/${file}`;
}

/**
 * Follow a stream of server-sent events until it ends. `seen(event, data)` gets each event, after `begun()` is done.
 *
 * This reads a response body and not an EventSource, which shows neither the status nor the text of a refusal.
 */
export async function events(path, seen, begun) {
  const response = await answer(path, { headers: { Accept: 'text/event-stream' } });
  await begun();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value.replaceAll('\r\n', '\n');
    const blocks = buffer.split('\n\n');
    buffer = blocks.pop();
    for (const block of blocks) {
      const fields = block
        .split('\n')
        .map((line) => line.match(/^(\w+): ?(.*)$/))
        .filter(Boolean);
      const data = fields
        .filter(([, name]) => name === 'data')
        .map(([, , text]) => text)
        .join('\n');
      const name = fields.find(([, field]) => field === 'event')?.[2] ?? 'message';
      if (data) seen(name, JSON.parse(data));
    }
  }
}

/**
 * A request as the body of a message: JSON, or a form with one part for each file.
 *
 * Each `File` inside the request is replaced by {"part": NAME}.
 */
export function body(request) {
  const files = [];
  const named = (value) => {
    if (value instanceof File) return { part: `file_${files.push(value) - 1}` };
    if (Array.isArray(value)) return value.map(named);
    if (value && typeof value === 'object')
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, named(one)]));
    return value;
  };
  const plain = named(request);
  if (!files.length) return { body: JSON.stringify(plain), headers: { 'Content-Type': 'application/json' } };
  const form = new FormData();
  for (const [key, value] of Object.entries(plain))
    form.append(key, typeof value === 'object' ? JSON.stringify(value) : value);
  files.forEach((file, i) => form.append(`file_${i}`, file, file.name));
  return { body: form, headers: {} };
}

async function send(path, request, { headers = {}, signal } = {}) {
  const message = body(request);
  const response = await answer(path, {
    method: 'POST',
    body: message.body,
    headers: { ...message.headers, ...headers },
    signal,
  });
  return response.json();
}

async function json(method, path, value) {
  const content =
    value === undefined ? {} : { body: JSON.stringify(value), headers: { 'Content-Type': 'application/json' } };
  return (await answer(path, { method, ...content })).json();
}

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: 'same-origin', ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Unreachable();
  }
  if (response.ok) return response;
  const explained = await response.json().catch(() => ({}));
  throw new ApiError(response.status, explained.error ?? {});
}
