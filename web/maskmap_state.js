// What a Mask Map node keeps in the workflow. A workflow can come from anybody, so nothing of it is taken as it is.

const MOST_BLOCKS = 512
const MOST_ROWS = 32
const KINDS = ['ffn', 'norm', 'attn']

const isText = (value, longest) => typeof value === 'string' && value.length <= longest
const isCount = (value, most = 1e9) => Number.isInteger(value) && value >= 0 && value <= most
const isShare = (value) => typeof value === 'number' && value >= 0 && value <= 1
const isList = (value, most, each) => Array.isArray(value) && value.length <= most && value.every(each)
const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value)

const isRow = (row) => Array.isArray(row) && row.length === 2 && KINDS.includes(row[0]) && isText(row[1], 20)

const isBlocks = (row) =>
  isObject(row) &&
  isText(row.label, 20) &&
  isList(row.names, 4, (name) => isText(name, 60)) &&
  isList(row.numbers, MOST_BLOCKS, (number) => isCount(number, 1e6)) &&
  isCount(row.last, 1e6) &&
  typeof row.single === 'boolean'

function isCell(cell, columns, rows) {
  if (!Array.isArray(cell) || cell.length !== 9) return false
  const [column, row, span, kind, stream, units, off, share, energy] = cell
  return (
    isCount(column, columns - 1) &&
    isCount(row, rows - 1) &&
    isCount(span, rows - row) &&
    span > 0 &&
    KINDS.includes(kind) &&
    isText(stream, 20) &&
    isCount(units) &&
    isCount(off, units) &&
    isShare(share) &&
    isShare(energy)
  )
}

const byKind = (value, fits) => Object.fromEntries(Object.entries(value).filter(([kind, one]) => [...KINDS, 'all'].includes(kind) && fits(one)))

/** A map that can be drawn, or null, whatever `value` is. */
export function clean(value) {
  if (!isObject(value) || !isObject(value.off) || !isObject(value.units)) return null
  const { columns, rows, cells, blocks } = value
  const fits =
    isText(value.digest, 20) &&
    isText(value.title, 60) &&
    ['mask', 'subspace'].includes(value.what) &&
    isList(columns, MOST_BLOCKS, (name) => isText(name, 30)) &&
    isList(rows, MOST_ROWS, isRow) &&
    isShare(value.top) &&
    value.top > 0 &&
    isList(blocks, 16, isBlocks) &&
    isList(cells, MOST_BLOCKS * MOST_ROWS, (cell) => isCell(cell, columns.length, rows.length))
  if (!fits || !columns.length || !cells.length) return null
  return {
    digest: value.digest,
    title: value.title,
    what: value.what,
    columns,
    rows,
    top: value.top,
    off: byKind(value.off, isShare),
    units: byKind(value.units, (word) => isText(word, 20)),
    cells,
    blocks
  }
}
