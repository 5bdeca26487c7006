/**
 * Small helpers to build elements. Text is always set as text, so nothing that a file or a server says becomes HTML.
 */

/**
 * An element with properties, attributes, listeners and children.
 *
 * A key that starts with "on" adds a listener. A key with a dash, "role" and "for" are attributes; null leaves them
 * out. Every other key is a property.
 */
export function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key.includes('-') || key === 'role' || key === 'for' || key === 'part') setAttribute(node, key, value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** An SVG element; attributes only. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A button. */
export function button(text, onclick, options = {}) {
  return el('button', { type: 'button', textContent: text, onclick, ...options });
}

/** A function that calls `work` once, `delay` milliseconds after its last call. */
export function debounced(work, delay) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, delay);
  };
}
