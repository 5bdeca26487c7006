/**
 * Files as sources of the timeline: whether they are a picture or a clip, how long they are, and small pictures of
 * them.
 *
 * The browser may not be able to show a file that the server can read (HEIC, some videos). Such a file is a source all
 * the same, without small pictures and, for a clip, with an unknown length; the server decides.
 */
import { Refusal } from './items.js';

const SIDE = 160; // pixels of the longer side of a small picture
const CLIP = /\.(mp4|m4v|mov|mkv|webm|avi|gif|mts|m2ts|ts)$/i;
const PICTURE = /\.(png|jpe?g|webp|avif|bmp|hei[cf]|jxl|jp2|tiff?|tga|exr|hdr|dng|ppm|pgm|pbm|pnm|qoi|ico)$/i;
const PATIENCE = 8000; // milliseconds after which a clip that the browser does not open counts as unknown

/**
 * Rejects with `Refusal` for an empty file, and for one that is neither by its type and name nor by its contents.
 * @returns {Promise<{name, kind, src: File, frames: number|null, thumbs: string[]}>}
 */
export async function fileSource(file, fps) {
  if (!file.size) throw new Refusal(`${file.name} is empty: choose another file.`);
  const moving = file.type.startsWith('video/') || CLIP.test(file.name) ? null : await animation(file, fps);
  if (moving) return { name: file.name, kind: 'clip', src: file, ...moving };
  if (file.type.startsWith('video/') || CLIP.test(file.name)) {
    const found = (await animation(file, fps)) ?? (await opened(URL.createObjectURL(file), fps));
    return { name: file.name, kind: 'clip', src: file, ...found };
  }
  const thumbs = await picture(file);
  if (!thumbs.length && !file.type.startsWith('image/') && !PICTURE.test(file.name))
    throw new Refusal(`${file.name} is neither a picture nor a video: choose another file.`);
  return { name: file.name, kind: 'image', src: file, frames: null, thumbs };
}

/** The length at a rate and small pictures of a video at an address; nulls where the browser cannot show it. */
export async function opened(url, fps, thumbs = 4) {
  const video = document.createElement('video');
  Object.assign(video, { muted: true, preload: 'auto', playsInline: true, src: url });
  try {
    await happens(video, 'loadeddata');
    const frames = Math.max(1, Math.round(video.duration * fps));
    const found = [];
    for (let i = 0; i < thumbs; i += 1) {
      video.currentTime = (video.duration * (i + 0.5)) / thumbs;
      await happens(video, 'seeked');
      found.push(small(video, video.videoWidth, video.videoHeight));
    }
    return { frames: Number.isFinite(frames) ? frames : null, thumbs: found };
  } catch {
    return { frames: null, thumbs: [] };
  } finally {
    video.removeAttribute('src');
    video.load();
    if (url.startsWith('blob:')) URL.revokeObjectURL(url);
  }
}

/** A small picture of anything that a canvas can draw, as a data address. */
export function small(drawable, width, height) {
  const scale = Math.min(1, SIDE / Math.max(width, height));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext('2d').drawImage(drawable, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/png');
}

async function picture(file) {
  try {
    const bitmap = await createImageBitmap(file);
    return [small(bitmap, bitmap.width, bitmap.height)];
  } catch {
    return [];
  }
}

/** The length and small pictures of an animated GIF, WebP, PNG or AVIF; null for everything else. */
async function animation(file, fps) {
  if (!('ImageDecoder' in window) || !file.type.startsWith('image/')) return null;
  if (!(await ImageDecoder.isTypeSupported(file.type))) return null;
  const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type: file.type });
  try {
    await decoder.tracks.ready;
    const count = decoder.tracks.selectedTrack.frameCount;
    if (count < 2) return null;
    const first = await decoder.decode({ frameIndex: 0 });
    const seconds = (count * (first.image.duration ?? 100000)) / 1e6;
    const thumbs = [small(first.image, first.image.displayWidth, first.image.displayHeight)];
    first.image.close();
    return { frames: Math.max(1, Math.round(seconds * fps)), thumbs };
  } catch {
    return null;
  } finally {
    decoder.close();
  }
}

function happens(target, event) {
  return new Promise((resolve, reject) => {
    const failed = () => reject(new Error(event));
    const timer = setTimeout(failed, PATIENCE);
    target.addEventListener(event, () => resolve(clearTimeout(timer)), { once: true });
    target.addEventListener('error', failed, { once: true });
  });
}
