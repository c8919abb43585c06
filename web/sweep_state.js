// What a Strength Sweep node keeps in the workflow. A workflow can come from anybody, so nothing of it is taken as it is.

import { mark } from './words.js'

const MOST = 256
/** What is left of the original in a picture. */
const WORDS = [mark('gone'), mark('traces'), mark('recognizable')]
const TYPES = ['output', 'temp', 'input']

const text = (value, longest) => (typeof value === 'string' ? value.slice(0, longest) : '')

const number = (value, low, high, otherwise) =>
  typeof value === 'number' && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise

const list = (value, most = MOST) => (Array.isArray(value) ? value.slice(0, most) : [])

const record = (value) => (typeof value === 'object' && value !== null ? value : {})

function cell(value) {
  const { filename, subfolder, type, similarity, word } = record(value)
  return {
    filename: text(filename, 255),
    subfolder: text(subfolder, 1024),
    type: TYPES.includes(type) ? type : 'output',
    similarity: number(similarity, -1, 1, null),
    word: WORDS.includes(word) ? word : ''
  }
}

/** A state that can be shown, whatever `value` is: as many cells as strengths x rows, or none of all three. */
export function clean(value) {
  const raw = record(value)
  let strengths = list(raw.strengths).map((strength) => number(strength, 0, 1, 0))
  let rows = list(raw.rows).map((row) => ({ prompt: text(record(row).prompt, 500), seed: text(record(row).seed, 20), everyday: record(row).everyday === true }))
  let cells = list(raw.cells).map(cell)
  if (cells.length !== strengths.length * rows.length) [strengths, rows, cells] = [[], [], []]
  const kinds = Object.fromEntries(
    ['strength_ffn', 'strength_norm', 'strength_attn'].map((name) => [name, number(record(raw.kinds)[name], 0, 1, 1)])
  )
  const chosen = Math.round(number(raw.chosen, -1, cells.length - 1, -1))
  const notes = list(raw.notes, 4).map((note) => text(note, 300)).filter(Boolean)
  const found = strengths.includes(raw.found) ? raw.found : null
  return { strengths, rows, cells, kinds, notes, chosen, found }
}

/** The state after a run. The cell that was chosen stays so if the grid still has its strength and row. */
export function afterRun(before, output) {
  const state = clean(list(record(output).sweep)[0])
  if (before.chosen < 0) return state
  const width = before.strengths.length
  const column = state.strengths.indexOf(before.strengths[before.chosen % width])
  const row = Math.floor(before.chosen / width)
  if (column >= 0 && row < state.rows.length) state.chosen = row * state.strengths.length + column
  return state
}

/** A strength as people write it. */
export const strengthText = (value) => String(Math.round(value * 1e4) / 1e4)
