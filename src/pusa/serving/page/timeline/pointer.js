/** Dragging on the timeline with a mouse, a pen or a finger: places, firmness, and the edge of a clip. */
const THRESHOLD = 4; // pixels before a press becomes a drag
const MARGIN = 32; // pixels at the ends of a scrolled timeline that scroll it

/**
 * Follow a pointer from its press to its release.
 *
 * move(dx, dy, event) is called after the threshold. done(moved, event) is called at the release; moved is false for a
 * press without a drag, and null if the drag was given up (Escape, or a lost pointer).
 */
export function follow(element, press, { move, done }) {
  const [x, y] = [press.clientX, press.clientY];
  let moved = false;
  const stop = new AbortController();
  const { signal } = stop;
  const end = (outcome, event) => {
    stop.abort();
    done(outcome, event);
  };
  element.setPointerCapture(press.pointerId);
  element.addEventListener(
    'pointermove',
    (event) => {
      if (!moved && Math.hypot(event.clientX - x, event.clientY - y) < THRESHOLD) return;
      moved = true;
      move(event.clientX - x, event.clientY - y, event);
    },
    { signal },
  );
  element.addEventListener('pointerup', (event) => end(moved, event), { signal });
  element.addEventListener('pointercancel', (event) => end(null, event), { signal });
  window.addEventListener('keydown', (event) => event.key === 'Escape' && end(null, event), { signal });
}

/** The slot under a pointer, which may lie outside the timeline. */
export function slotAt(canvas, grid, clientX) {
  const box = canvas.getBoundingClientRect();
  const slot = Math.floor(((clientX - box.left) / box.width) * grid.slots);
  return Math.max(0, Math.min(grid.last, slot));
}

/** Scroll a timeline that is wider than its window while something is dragged near its ends. */
export function scrollNear(scroller, clientX) {
  const box = scroller.getBoundingClientRect();
  if (clientX < box.left + MARGIN) scroller.scrollLeft -= MARGIN / 2;
  if (clientX > box.right - MARGIN) scroller.scrollLeft += MARGIN / 2;
}
