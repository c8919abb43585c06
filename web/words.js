// What our panels say, in the page's language: locales/<language>/main.json has each English text with its translation.

let words = {}

/** Called once the texts of the page's language are there; {}: English. */
export const setWords = (found) => (words = found)

/** `text` in the page's language, with `values` in place of %1, %2, ... */
export function t(text, ...values) {
  const said = Object.hasOwn(words, text) ? words[text] : text
  return said.replace(/%(\d)/g, (_, i) => String(values[i - 1]))
}

/** A text that `t` gets later, when the language is known. */
export const mark = (text) => text
