// What a Prompt Check node keeps in the workflow. A workflow can come from anybody, so nothing of it is taken as it is.

import { mark } from './words.js'

const MOST = 500
const LONGEST = 2000
const VERDICTS = ['memorized', 'unclear', 'usual']

/** The columns in order: key of a row, title, how it is written, and what it means. */
export const COLUMNS = [
  { key: 'prompt', title: mark('prompt'), kind: 'text', hint: mark('What was checked') },
  { key: 'verdict', title: mark('verdict'), kind: 'verdict', hint: mark('Beside everyday prompts of the same model') },
  { key: 'score', title: mark('score'), kind: 'times', hint: mark('Pull beyond what everyday prompts do; their median is 1×') },
  { key: 'pull', title: mark('pull'), kind: 'times', hint: mark('Whole size of the text-conditional prediction; the median of everyday prompts is 1×') },
  { key: 'percentile', title: mark('above'), kind: 'share', hint: mark('Share of everyday prompts that score lower') },
  { key: 'agreement', title: mark('agreement'), kind: 'share', hint: mark('Whether different noises lead to the same picture') },
  { key: 'verdict_after', title: mark('after'), kind: 'verdict', hint: mark('Verdict after forgetting') },
  { key: 'score_after', title: mark('score after'), kind: 'times', hint: mark('Score after forgetting') },
  { key: 'pull_after', title: mark('pull after'), kind: 'times', hint: mark('Pull after forgetting') }
]

const text = (value, longest) => (typeof value === 'string' ? value.slice(0, longest) : '')

const number = (value, low, high) => (typeof value === 'number' && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : null)

const cleaned = {
  text: (value) => text(value, LONGEST),
  verdict: (value) => (VERDICTS.includes(value) ? value : null),
  times: (value) => number(value, 0, 1e6),
  share: (value) => number(value, -1, 1)
}

function row(value) {
  if (typeof value !== 'object' || value === null) return null
  const made = Object.fromEntries(COLUMNS.map(({ key, kind }) => [key, cleaned[kind](value[key])]))
  return made.prompt ? made : null
}

/** A state that can be shown, whatever `value` is. */
export function clean(value) {
  const raw = typeof value === 'object' && value !== null ? value : {}
  const rows = (Array.isArray(raw.rows) ? raw.rows.slice(0, MOST) : []).map(row).filter(Boolean)
  const known = COLUMNS.some(({ key }) => key === raw.by)
  return { rows, by: known ? raw.by : 'score', down: known ? raw.down !== false : true }
}

/** The state after a run: new rows, sorted as before. */
export const afterRun = (before, output) => clean({ ...before, rows: output?.uniforget_prompts })

/** The columns of which some row has a value. */
export const shownColumns = (state) => COLUMNS.filter(({ key }) => state.rows.some((row) => row[key] !== null))

/** The rows in the order that the state asks for; what has no value comes last. */
export function sorted({ rows, by, down }) {
  const rank = (value) => (VERDICTS.includes(value) && by.startsWith('verdict') ? VERDICTS.length - VERDICTS.indexOf(value) : value)
  const compare = (a, b) => (typeof a === 'string' ? a.localeCompare(b) : a - b)
  return [...rows].sort((one, other) => {
    const [a, b] = [rank(one[by]), rank(other[by])]
    if (a === null || b === null) return (a === null) - (b === null)
    return down ? compare(b, a) : compare(a, b)
  })
}
