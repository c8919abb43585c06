// What a Compare node keeps in the workflow. A workflow can come from anybody, so nothing of it is taken as it is.

const MOST = 512
const TYPES = ['output', 'temp', 'input']

const text = (value, longest) => (typeof value === 'string' ? value.slice(0, longest) : '')

const number = (value, low, high, otherwise) =>
  typeof value === 'number' && Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise

const list = (value) => (Array.isArray(value) ? value.slice(0, MOST) : [])

function picture(value) {
  if (typeof value !== 'object' || value === null) return null
  const filename = text(value.filename, 255)
  if (!filename) return null
  const type = TYPES.includes(value.type) ? value.type : 'output'
  return { filename, subfolder: text(value.subfolder, 1024), type }
}

/** A state that can be shown, whatever `value` is. */
export function clean(value) {
  const raw = typeof value === 'object' && value !== null ? value : {}
  const a = list(raw.a).map(picture).filter(Boolean)
  const b = list(raw.b).map(picture).filter(Boolean)
  const [left, right] = list(raw.labels)
  const count = pairCount(a, b)
  return {
    a,
    b,
    labels: [text(left, 80) || 'original', text(right, 80) || 'forgotten'],
    notes: list(raw.notes)
      .slice(0, 4)
      .map((note) => text(note, 300))
      .filter(Boolean),
    position: number(raw.position, 0, 1, 0.5),
    index: Math.round(number(raw.index, 0, Math.max(0, count - 1), 0))
  }
}

/** The state after a run: new pictures, the slider where it was. */
export function afterRun(before, output) {
  const raw = typeof output === 'object' && output !== null ? output : {}
  return clean({
    a: raw.a_images,
    b: raw.b_images,
    labels: raw.labels,
    notes: raw.notes,
    position: before.position,
    index: before.index
  })
}

/** How many pairs there are to look at. */
export const pairCount = (a, b) => Math.max(a.length, b.length)

/** The pair at `index`; a single picture is compared with each of the other side. A missing partner is null. */
export function pairAt(state, index) {
  const at = (pictures) => (pictures.length === 1 ? pictures[0] : pictures[index]) ?? null
  return [at(state.a), at(state.b)]
}
