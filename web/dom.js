// Small helpers for widgets made of plain DOM.

const SVG = 'http://www.w3.org/2000/svg'

/** A new element with a class and attributes, put into `parent` if there is one. */
export function element(tag, className, parent, attributes = {}) {
  const made = document.createElement(tag)
  made.className = className
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  parent?.append(made)
  return made
}

/** A line drawing of 16 x 16 units in the colour of the text around it; `filled` is the part of it that is solid. */
export function icon(lines, filled = '') {
  const svg = document.createElementNS(SVG, 'svg')
  svg.setAttribute('viewBox', '0 0 16 16')
  svg.setAttribute('aria-hidden', 'true')
  for (const [path, fill] of [
    [filled, 'currentColor'],
    [lines, 'none']
  ]) {
    if (!path) continue
    const made = document.createElementNS(SVG, 'path')
    made.setAttribute('d', path)
    made.setAttribute('fill', fill)
    if (fill === 'none') made.setAttribute('stroke', 'currentColor')
    svg.append(made)
  }
  return svg
}

/** Loads a style sheet that lies beside our scripts, once. */
export function loadStyle(name) {
  const href = new URL(`./${name}`, import.meta.url).href
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return
  const link = document.createElement('link')
  link.rel = 'stylesheet'
  link.href = href
  document.head.append(link)
}

/** Puts `text` into the clipboard; false where the page may not (no https, or refused). */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const area = element('textarea', '', document.body, { readonly: '' })
    area.style.cssText = 'position: fixed; opacity: 0; pointer-events: none'
    const focused = document.activeElement
    try {
      area.value = text
      area.select()
      return document.execCommand('copy')
    } catch {
      return false
    } finally {
      area.remove()
      focused?.focus?.({ preventScroll: true })
    }
  }
}
