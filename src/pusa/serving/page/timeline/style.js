/** The style of the timeline, for its shadow root. */
const rules = await fetch(new URL('timeline.css', import.meta.url));

export const style = new CSSStyleSheet();
style.replaceSync(await rules.text());
