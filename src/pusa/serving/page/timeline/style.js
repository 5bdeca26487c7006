/** The style of the timeline. A host page may set the colours: --accent, --ink, --soft, --line, --card, --paper, --bad. */
const RULES = `
:host { display: block; --cell: 3.25rem; --track: 4.5rem; --lane: 4.75rem; --head: 1.9rem; --inset: .9rem;
  --_accent: var(--accent, #2f5bd0); --_ink: var(--ink, #1c1d1f); --_soft: var(--soft, #5a5e65);
  --_line: var(--line, #d9d9d4); --_card: var(--card, #fff); --_paper: var(--paper, #f6f6f3); --_bad: var(--bad, #b3261e);
  color: var(--_ink); font-size: .875rem; line-height: 1.4 }
* { box-sizing: border-box }
:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px }
.frame { display: flex; border: 1px solid var(--_line); border-radius: .6rem; background: var(--_card); overflow: hidden }
.frame.over { border-color: var(--_accent); box-shadow: 0 0 0 1px var(--_accent) }
.gutter { flex: none; width: 3.1rem; border-right: 1px solid var(--_line); color: var(--_soft); font-size: .75rem }
.gutter div { display: flex; flex-direction: column; align-items: flex-end; padding-right: .4rem }
.gutter .head { height: var(--head); padding-top: .15rem; font-size: .6875rem; line-height: 1.15 }
.gutter .scale { height: var(--lane); margin-top: var(--track); padding-block: .35rem; justify-content: space-between }
.scroll { flex: 1; min-width: 0; overflow-x: auto; overflow-y: hidden }
.canvas { position: relative; min-width: calc(var(--cell) * var(--slots)); height: calc(var(--head) + var(--track) + var(--lane)) }
.cells { display: grid; grid-template-columns: repeat(var(--slots), 1fr); height: 100% }
.cell { position: relative; border-left: 1px solid var(--_line); cursor: copy }
.cell:first-child { border-left: 0 }
.cell .tick { display: block; height: var(--head); padding: .15rem .2rem; font-size: .6875rem; line-height: 1.15; color: var(--_soft);
  font-variant-numeric: tabular-nums; white-space: nowrap; border-bottom: 1px solid var(--_line) }
.cell .tick b { display: block; font-weight: 500; color: var(--_ink) }
.cell::after { content: ""; position: absolute; inset: calc(var(--head) + var(--track)) 0 0 0; border-top: 1px solid var(--_line);
  background: var(--_paper) }
.cell .plus { position: absolute; top: var(--head); left: 0; right: 0; height: var(--track); display: grid; place-items: center;
  color: var(--_soft); font-size: 1.1rem; opacity: 0 }
.cell:hover .plus { opacity: 1 }
.cell.target { background: color-mix(in srgb, var(--_accent) 18%, transparent) }
.cell.taken { background: color-mix(in srgb, var(--_bad) 18%, transparent) }
.ghost { position: absolute; top: calc(var(--head) + .3rem); height: calc(var(--track) - .6rem); padding: 0 .15rem; margin: 0 .2rem;
  font: inherit; font-size: .6875rem; line-height: 1.15; color: var(--_accent); background: color-mix(in srgb, var(--_accent) 7%, var(--_card));
  border: 1.5px dashed var(--_accent); border-radius: .4rem; cursor: pointer; overflow: hidden; z-index: 1 }
.item { position: absolute; top: var(--head); bottom: 0; z-index: 2; pointer-events: none }
.item.selected { z-index: 3 }
.place { position: absolute; top: .3rem; left: .15rem; right: .15rem; height: calc(var(--track) - .6rem); display: flex; overflow: hidden;
  border-radius: .4rem; background: var(--_paper); box-shadow: 0 0 0 1.5px var(--_line); cursor: grab; touch-action: pan-y;
  pointer-events: auto; user-select: none }
.selected .place { box-shadow: 0 0 0 2px var(--_accent) }
.item.dragging .place { cursor: grabbing; opacity: .85 }
.place img { flex: 1 1 0; min-width: 0; height: 100%; object-fit: cover; pointer-events: none }
.untold { padding: .3rem; font-size: .6875rem; line-height: 1.2; overflow-wrap: anywhere }
.level { position: absolute; left: 0; right: 0; top: calc(var(--track) + var(--inset)); bottom: var(--inset) }
.level svg { position: absolute; inset: 0; width: 100%; height: calc(100% + var(--inset)); overflow: visible }
.area { fill: color-mix(in srgb, var(--_accent) 24%, transparent); stroke: var(--_accent); stroke-width: 1.5; vector-effect: non-scaling-stroke }
.handle { position: absolute; width: 1.5rem; height: 1.5rem; margin: -.75rem; left: 50%; border-radius: 50%; cursor: ns-resize; touch-action: none;
  pointer-events: auto }
.handle::before { content: ""; position: absolute; inset: .35rem; border-radius: 50%; background: var(--_card); border: 2.5px solid var(--_accent) }
.handle.first { left: .9rem } .handle.last { left: calc(100% - .9rem) }
.edge { position: absolute; right: 0; top: .3rem; height: calc(var(--track) - .6rem); width: .75rem; cursor: ew-resize; touch-action: none;
  pointer-events: auto; border-radius: 0 .4rem .4rem 0; background: color-mix(in srgb, var(--_accent) 55%, transparent) }
.remove { position: absolute; top: .1rem; right: 0; width: 1.5rem; height: 1.5rem; padding: 0; border: 0; border-radius: 50%; font: inherit; line-height: 1;
  color: var(--_card); background: var(--_ink); cursor: pointer; opacity: 0; pointer-events: none }
.item:hover .remove, .selected .remove { opacity: .85; pointer-events: auto }
.clip .remove { right: .8rem }
.bar { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-top: .6rem }
.bar .length { margin-left: auto; color: var(--_soft); font-variant-numeric: tabular-nums }
button.plain { font: inherit; font-size: .9375rem; line-height: 1.2; min-height: 2.25rem; padding: .3rem .8rem; color: inherit; background: var(--_card); border: 1px solid var(--_line);
  border-radius: .5rem; cursor: pointer }
button.plain:hover { border-color: var(--_soft) }
.said { margin: .5rem 0 0; min-height: 1.4em; color: var(--_soft) }
.said.refused { color: var(--_bad) }
.inspector { display: grid; gap: .4rem; margin-top: .5rem; padding: .7rem .8rem; border: 1px solid var(--_line); border-radius: .6rem; background: var(--_paper) }
.inspector[hidden] { display: none }
.summary { margin: 0; font-weight: 600; overflow-wrap: anywhere }
.row { display: grid; grid-template-columns: 11rem 1fr 9.5rem; gap: .7rem; align-items: center }
.row[hidden] { display: none }
.row input { width: 100%; min-height: 1.5rem; accent-color: var(--_accent) }
.row output { color: var(--_soft); font-variant-numeric: tabular-nums }
.inspector .head { display: flex; gap: .75rem; justify-content: space-between; align-items: center }
@media (max-width: 30rem) { .row { grid-template-columns: 1fr auto } .row input { grid-column: 1 / -1; grid-row: 2 }
  .gutter { width: 2.6rem } }
@media (prefers-reduced-motion: no-preference) { .item:not(.dragging) { transition: left .15s, width .15s } }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
`;

export const style = new CSSStyleSheet();
style.replaceSync(RULES);
