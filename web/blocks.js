// Selections of blocks as artists write them (IN4-8, MID): read as uniforget/model/blocks.py reads them, and written.

const ITEM =
  /^(?:([a-z_]+)(?:\s+(?:blocks?|layers?)\b)?[\s.]*)?(?:([0-9]{1,6})(?![0-9])(?:\s*[-\u2013]\s*(?:([a-z_]+)[\s.]*)?([0-9]{1,6})(?![0-9]))?)?\s*/i
const NOT = /^(?:not\b|!)\s*/i
const PLAIN = ['block', 'blocks', 'layer', 'layers']

/** What a block of a row is called. */
export const blockName = (row, number) => (row.single ? row.label : `${row.label}${number}`)

const namesOf = (row) => row.numbers.map((number) => blockName(row, number))

/** All blocks of all rows. */
export const allBlocks = (rows) => rows.flatMap(namesOf)

function named(word, rows) {
  const lower = word.toLowerCase()
  let found = rows.filter((row) => row.names.some((name) => name.startsWith(lower)))
  if (PLAIN.includes(lower)) {
    const plain = rows.filter((row) => !row.label)
    if (plain.length) found = plain
  }
  return found.length === 1 ? found[0] : null
}

/** Blocks that one part names, and the row it ended with; null: it cannot be read. */
function readPart(part, rows, before) {
  if (part.toLowerCase() === 'all') return [allBlocks(rows), before]
  let row = rows.find((one) => !one.label) ?? before
  const found = []
  let rest = part
  if (!rest) return null
  while (rest) {
    const [item, word, first, again, last] = ITEM.exec(rest)
    if (!item.trim()) return null
    rest = rest.slice(item.length)
    if (word) row = named(word, rows)
    if (!row) return null
    if (first === undefined) {
      found.push(...namesOf(row))
      continue
    }
    const [low, high] = [Number(first), Number(last ?? first)]
    if ((again && named(again, rows) !== row) || high < low || high > row.last) return null
    found.push(...row.numbers.filter((n) => n >= low && n <= high).map((n) => blockName(row, n)))
  }
  return [found, row]
}

/**
 * The blocks that a selection names.
 * @param {string} text
 * @param {{label: string, names: string[], numbers: number[], last: number, single: boolean}[]} rows
 * @returns {Set<string> | null} null: it cannot be read, names what is not there, or leaves nothing
 */
export function readBlocks(text, rows) {
  const wanted = new Set()
  const unwanted = new Set()
  let everything = true
  let row = null
  for (const written of text.split(/[,;\n]/)) {
    const part = written.trim()
    if (!part) continue
    const refused = NOT.exec(part)
    const read = readPart(refused ? part.slice(refused[0].length) : part, rows, row)
    if (!read) return null
    row = read[1]
    for (const block of read[0]) (refused ? unwanted : wanted).add(block)
    if (!refused) everything = false
  }
  const chosen = new Set(allBlocks(rows).filter((block) => (everything || wanted.has(block)) && !unwanted.has(block)))
  return chosen.size ? chosen : null
}

/** The shortest plain way to write a selection; "" for all blocks. */
export function writeBlocks(kept, rows) {
  if (allBlocks(rows).every((block) => kept.has(block))) return ''
  const parts = []
  for (const row of rows) {
    const chosen = row.numbers.filter((number) => kept.has(blockName(row, number)))
    if (row.label && chosen.length === row.numbers.length) {
      parts.push(row.label)
      continue
    }
    let start = null
    row.numbers.forEach((number, i) => {
      if (!kept.has(blockName(row, number))) return
      start ??= number
      // Ranges pass over blocks without gates.
      const next = row.numbers[i + 1]
      if (next !== undefined && kept.has(blockName(row, next))) return
      parts.push(start === number ? `${row.label}${number}` : `${row.label}${start}-${number}`)
      start = null
    })
  }
  return parts.join(', ')
}
