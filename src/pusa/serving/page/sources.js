/**
 * Sources of the timeline from the server: finished clips, single frames of them, and what other clips were made from.
 */
import { address, get } from './api.js';
import { fileSource, opened } from './timeline/files.js';
import { Refusal } from './timeline/items.js';

export const CLIP_TYPE = 'application/x-pusa-clip';

/** Pictures that come with the page, each with words that fit it. Their origin: embedded/assets and embedded/world. */
export const SAMPLES = [
  { file: 'circle-left.png', name: 'Green circle, left', prompt: 'a green circle moves right on a white background' },
  { file: 'circle-right.png', name: 'Green circle, right', prompt: 'a green circle moves right on a white background' },
  { file: 'cat.png', name: 'A cat', prompt: 'the camera zooms in over a photograph' },
];

/** What was dropped, chosen or pasted, as sources. `clips` finds a finished clip by its id. */
export async function fromTransfer(transfer, clips, fps) {
  const id = transfer.getData?.(CLIP_TYPE);
  if (id && clips.get(id)) return [await finished(clips.get(id))];
  const files = [...(transfer.files ?? [])];
  try {
    return await Promise.all(files.map((file) => fileSource(file, fps)));
  } catch (error) {
    if (files.length === 1 || !(error instanceof Refusal)) throw error;
    throw new Refusal(`${error.message} None of the ${files.length} files was added.`);
  }
}

/** A finished clip as a source. */
export async function finished(video) {
  const { thumbs } = await opened(address(video.id), video.fps);
  return { name: title(video), kind: 'clip', src: { video: video.id }, frames: video.num_frames, thumbs };
}

/** One frame of a finished clip as a picture. thumb: a data address of it. */
export function frameOf(video, frame, thumb) {
  return {
    name: `frame ${frame} of ${title(video)}`,
    kind: 'image',
    src: { video: video.id, frame },
    frames: null,
    thumbs: [thumb],
  };
}

/** The source that an order names; null if it is a file that is not here. */
export async function described(src, kind, clips, fps) {
  if (src.missing) return null;
  if (src.video) {
    const video = clips.get(src.video) ?? (await get(src.video).catch(() => null)); // an older one is not in the list
    const name = video ? title(video) : 'a clip';
    const clip = video ? await finished(video) : { name, kind: 'clip', frames: null, thumbs: [] };
    return 'frame' in src
      ? { ...clip, name: `frame ${src.frame} of ${name}`, kind: 'image', src, thumbs: clip.thumbs.slice(0, 1) }
      : { ...clip, src };
  }
  const about = clips.get(src.of)?.sources?.[src.source] ?? {};
  const made = clips.get(about.video);
  const name = made ? title(made) : (about.filename ?? `the ${kind === 'image' ? 'picture' : 'clip'} of another clip`);
  const file = address(src.of, `sources/${src.source}`);
  if (kind === 'image') return { name, kind, src, frames: null, thumbs: [file] };
  const { frames, thumbs } = await opened(file, fps);
  return { name, kind, src, frames: about.frames ? Math.round((about.frames * fps) / about.fps) : frames, thumbs };
}

/** A picture that comes with the page, as a file. */
export async function sampleFile({ file }) {
  const blob = await (await fetch(`/static/samples/${file}`)).blob();
  return new File([blob], file, { type: 'image/png' });
}

/** A short name of a clip: its prompt, cut. */
export function title(video) {
  const text = video.prompt.trim() || 'a clip without words';
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
