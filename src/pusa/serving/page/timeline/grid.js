/**
 * The latent frames of a clip, as arithmetic on frame numbers.
 *
 * A slot is a latent frame. Slot 0 holds frame 0. Slot k holds the frames from group·(k−1)+1 to group·k. So a clip
 * of n+1 slots has group·n+1 frames. A frame number counts pictures of the clip from 0.
 */
export class Grid {
  /** @param {{frames: number, fps: number, group: number}} clip its length, rate and frames per slot */
  constructor({ frames, fps, group }) {
    this.frames = frames;
    this.fps = fps;
    this.group = group;
    this.slots = this.slotOf(frames - 1) + 1;
  }

  get last() {
    return this.slots - 1;
  }

  slotOf(frame) {
    return Math.floor((frame + this.group - 1) / this.group);
  }

  /** The first frame of a slot. */
  first(slot) {
    return slot === 0 ? 0 : this.group * (slot - 1) + 1;
  }

  /** The frame at which a picture in this slot is placed: the last one of the slot. */
  pictureFrame(slot) {
    return this.group * slot;
  }

  /** How many frames `count` slots hold from `slot` on. */
  framesIn(slot, count) {
    return this.pictureFrame(slot + count - 1) - this.first(slot) + 1;
  }

  /** How many whole slots `frames` frames fill from `slot` on. */
  slotsFilled(slot, frames) {
    if (slot > 0) return Math.floor(frames / this.group);
    return frames < 1 ? 0 : Math.floor((frames - 1) / this.group) + 1;
  }

  /** The frame that a number, a number from the end, or a time "1.5s" means; null if it is outside the clip. */
  frameOf(place) {
    const text = String(place).trim();
    const number = text.endsWith('s') ? Math.round(parseFloat(text) * this.fps) : parseInt(text, 10);
    const frame = number < 0 ? number + this.frames : number;
    return frame >= 0 && frame < this.frames ? frame : null;
  }

  seconds(frame) {
    return `${(frame / this.fps).toFixed(1)} s`;
  }

  /** "frame 0", "frames 5 to 8" */
  name(slot, count = 1) {
    const first = this.first(slot);
    const last = this.pictureFrame(slot + count - 1);
    return first === last ? `frame ${first}` : `frames ${first} to ${last}`;
  }
}
