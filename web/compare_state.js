// What a comparing node keeps in the workflow. A workflow can come from anybody, so nothing of it is taken as it is.

import { WHOLE, held } from './compare_zoom.js'

export const MODES = ['horizontal', 'vertical', 'flicker', 'difference', 'side']
export const GAINS = [1, 2, 4, 8, 16, 32]

const MOST = 512
const LINES = 32
const TYPES = ['output', 'temp', 'input']

const text = (value, longest) => (typeof value === 'string' ? value.slice(0, longest) : '')

const number = (value, low, high, otherwise) =>
  typeof value === 'number' && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise

const list = (value, most = MOST) => (Array.isArray(value) ? value.slice(0, most) : [])

const record = (value) => (typeof value === 'object' && value !== null ? value : {})

const texts = (value, most, longest) =>
  list(value, most)
    .map((item) => text(item, longest))
    .filter(Boolean)

function picture(value) {
  const { filename, subfolder, type } = record(value)
  const name = text(filename, 255)
  return name ? { filename: name, subfolder: text(subfolder, 1024), type: TYPES.includes(type) ? type : 'output' } : null
}

function view(value) {
  const { scale, x, y } = record(value)
  return held({ scale: number(scale, 1, 1e6, 1), x: number(x, 0, 1, WHOLE.x), y: number(y, 0, 1, WHOLE.y) })
}

/** A state that can be shown, whatever `value` is. */
export function clean(value) {
  const raw = record(value)
  const a = list(raw.a).map(picture).filter(Boolean)
  const b = list(raw.b).map(picture).filter(Boolean)
  const [left, right] = list(raw.labels)
  const [madeA, madeB] = list(raw.settings)
  const count = pairCount(a, b)
  return {
    a,
    b,
    labels: [text(left, 80) || 'original', text(right, 80) || 'forgotten'],
    notes: texts(raw.notes, 4, 300),
    settings: [texts(madeA, LINES, 400), texts(madeB, LINES, 400)],
    position: number(raw.position, 0, 1, 0.5),
    index: Math.round(number(raw.index, 0, Math.max(0, count - 1), 0)),
    mode: MODES.includes(raw.mode) ? raw.mode : MODES[0],
    gain: GAINS.includes(raw.gain) ? raw.gain : 4,
    zoom: view(raw.zoom),
    wheel: raw.wheel === true
  }
}

/** The state after a run: new pictures, looked at as those before. */
export function afterRun(before, output) {
  const { a_images, b_images, labels, notes, settings } = record(output)
  return clean({ ...before, a: a_images, b: b_images, labels, notes, settings })
}

/** How many pairs there are to look at. */
export const pairCount = (a, b) => Math.max(a.length, b.length)

/** The pair at `index`; a single picture is compared with each of the other side. A missing partner is null. */
export function pairAt(state, index) {
  const at = (pictures) => (pictures.length === 1 ? pictures[0] : pictures[index]) ?? null
  return [at(state.a), at(state.b)]
}

const path = ({ filename, subfolder }) => (subfolder ? `${subfolder}/${filename}` : filename)

/** How the pair that is looked at was made, as text to send to somebody. */
export function settingsText(state) {
  const count = pairCount(state.a, state.b)
  const lines = [`${state.labels[0]} | ${state.labels[1]}`]
  if (count > 1) lines.push(`pair ${state.index + 1} of ${count}`)
  pairAt(state, state.index).forEach((shown, side) => {
    lines.push('', `${state.labels[side]}: ${shown ? path(shown) : 'no picture'}`)
    lines.push(...state.settings[side].map((line) => `  ${line}`))
  })
  const looked = [`view: ${state.mode}`]
  if (['horizontal', 'vertical'].includes(state.mode)) looked.push(`slider at ${Math.round(state.position * 100)} %`)
  if (state.mode === 'difference') looked.push(`amplified ${state.gain} times`)
  if (state.zoom.scale > 1) {
    const at = [state.zoom.x, state.zoom.y].map((v) => `${(v * 100).toFixed(1)} %`).join(', ')
    looked.push(`zoom ${state.zoom.scale.toFixed(2)} at ${at}`)
  }
  return [...lines, '', looked.join(', ')].join('\n')
}
