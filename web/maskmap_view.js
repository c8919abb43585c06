// The map of a mask as plain DOM: blocks along x, kinds along y, the share switched off as colour. It knows nothing of ComfyUI.

import { blockName } from './blocks.js'
import { element } from './dom.js'
import { t } from './words.js'

// Cividis, as in nodes/mappicture.py: one order in every kind of colour vision, and in grey.
const SCALE = ['#00204d', '#00336f', '#39486b', '#575c6d', '#707173', '#8a8779', '#a69d75', '#c4b56c', '#e4cf5b', '#ffea46']
const CHANNELS = SCALE.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)))
const NUMBERS_FROM = 16 // px; narrower columns show every fifth number

/** CSS colour of a share of the scale, 0 to 1. */
export function colour(share) {
  const at = Math.min(1, Math.max(0, share)) * (SCALE.length - 1)
  const low = Math.min(Math.floor(at), SCALE.length - 2)
  return `rgb(${CHANNELS[low].map((a, i) => Math.round(a + (CHANNELS[low + 1][i] - a) * (at - low))).join(' ')})`
}

const percent = (share) => `${(100 * share).toFixed(1)}%`
const count = (number) => number.toLocaleString('en')

export class MaskMapView {
  /** @param {(kept: Set<string>, done: boolean) => void} changed called while and after blocks are switched on or off */
  constructor(changed) {
    this.changed = changed
    this.map = null
    this.kept = new Set()
    this.build()
    this.listen()
  }

  build() {
    // Nodes 2.0 gives the free height of the node to what is of class widget-expands
    this.root = element('div', 'uniforget-map widget-expands')
    this.head = element('div', 'ufm-head', this.root)
    this.title = element('div', 'ufm-title', this.head)
    this.all = this.button(t('All'), t('Keep all blocks'), () => this.apply(new Set(this.names())))
    this.invert = this.button(t('Invert'), t('Keep the other blocks instead'), () =>
      this.apply(new Set(this.names().filter((name) => !this.kept.has(name))))
    )
    this.scroller = element('div', 'ufm-scroller ufh-scrolls', this.root)
    this.grid = element('div', 'ufm-grid', this.scroller, { role: 'group', 'aria-label': t('Blocks of the mask') })
    this.foot = element('div', 'ufm-foot', this.root)
    this.legend = element('div', 'ufm-legend', this.foot)
    element('span', '', this.legend).textContent = '0%'
    const bar = element('span', 'ufm-bar', this.legend)
    bar.style.background = `linear-gradient(90deg, ${SCALE.join(', ')})`
    this.top = element('span', '', this.legend)
    this.status = element('div', 'ufm-status', this.foot, { 'aria-live': 'polite' })
    this.note = element('div', 'ufm-note', this.root)
    this.empty = element('div', 'ufm-empty', this.root)
    this.empty.textContent = t('Run the workflow: the map of the mask appears here.')
    new ResizeObserver(() => this.fit()).observe(this.scroller)
  }

  button(text, title, action) {
    const made = element('button', 'ufm-button', this.head, { type: 'button', title })
    made.textContent = text
    made.addEventListener('click', action)
    return made
  }

  listen() {
    const { grid } = this
    let painting = null
    const columnAt = (event) => {
      const under = document.elementFromPoint(event.clientX, event.clientY)
      const column = grid.contains(under) ? under.closest('[data-column]')?.dataset.column : undefined
      return column === undefined ? null : Number(column)
    }
    const paint = (event) => {
      const column = columnAt(event)
      const name = column === null ? '' : this.map.columns[column]
      if (name && !this.locked && this.kept.has(name) !== painting.keep) this.set([name], painting.keep, false)
    }
    grid.addEventListener('pointerdown', (event) => {
      const column = columnAt(event)
      if (event.button !== 0 || painting || column === null || this.locked) return
      painting = { pointer: event.pointerId, keep: !this.kept.has(this.map.columns[column]), before: new Set(this.kept) }
      grid.setPointerCapture(event.pointerId)
      paint(event)
    })
    grid.addEventListener('pointermove', (event) => {
      if (event.pointerId === painting?.pointer) paint(event)
      this.describe(columnAt(event), document.elementFromPoint(event.clientX, event.clientY)?.dataset.cell)
    })
    const end = (event) => {
      if (event.pointerId !== painting?.pointer) return
      const { before } = painting
      painting = null
      if (before.size !== this.kept.size || [...before].some((name) => !this.kept.has(name))) this.changed(this.kept, true)
    }
    grid.addEventListener('pointerup', end)
    grid.addEventListener('pointercancel', end)
    grid.addEventListener('pointerleave', () => painting || this.describe(null))
    grid.addEventListener('focusin', (event) => this.describe(event.target.dataset.column ?? null))
    grid.addEventListener('focusout', () => this.describe(null))
    grid.addEventListener('keydown', (event) => this.key(event))
  }

  key(event) {
    const column = event.target.dataset.column
    if (column === undefined || event.ctrlKey || event.metaKey || event.altKey) return
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
    if (step) this.toggles[Number(column) + step]?.focus()
    else if (event.key === ' ' || event.key === 'Enter') {
      const name = this.map.columns[column]
      if (name && !this.locked) this.set([name], !this.kept.has(name), true)
    } else return
    event.preventDefault()
    event.stopPropagation()
  }

  /** All blocks that can be chosen. */
  names() {
    return this.map ? this.map.columns.filter(Boolean) : []
  }

  set(names, keep, done) {
    const kept = new Set(this.kept)
    for (const name of names) {
      if (keep) kept.add(name)
      else kept.delete(name)
    }
    this.apply(kept, done)
  }

  apply(kept, done = true) {
    if (this.locked) return
    if (!kept.size) {
      this.note.textContent = t('At least one block stays.')
      return
    }
    this.kept = kept
    this.note.textContent = ''
    this.drawKept()
    // At once: a run that ends while somebody drags draws what was written.
    this.changed(kept, done)
  }

  /**
   * @param map as maskmap_state.js makes it, or null
   * @param {Set<string> | null} kept blocks that stay in the mask; null: what is written cannot be read
   * @param {boolean} locked whether another node writes the blocks
   */
  show(map, kept, locked) {
    const same = map !== null && map === this.map
    this.map = map
    this.locked = locked
    this.kept = kept ?? new Set(this.names())
    this.root.classList.toggle('ufm-is-empty', map === null)
    this.root.classList.toggle('ufm-is-locked', locked)
    this.all.disabled = this.invert.disabled = locked
    if (map === null) return
    this.note.textContent = locked
      ? t('Another node writes the blocks.')
      : kept === null
        ? t('What is written in "blocks" does not fit this mask. Run the workflow to hear why, or click on blocks.')
        : ''
    if (!same) this.drawMap()
    this.drawKept()
    this.describe(null)
    this.fit()
  }

  drawMap() {
    const { map, grid } = this
    grid.replaceChildren()
    grid.style.setProperty('--ufm-columns', map.columns.length)
    grid.style.setProperty('--ufm-rows', map.rows.length)
    const index = new Map(map.columns.map((name, i) => [name, i]))
    for (const row of map.blocks) {
      const names = row.numbers.map((number) => blockName(row, number)).filter((name) => index.has(name))
      if (!names.length) continue
      const columns = names.map((name) => index.get(name))
      const head = element('button', 'ufm-row', grid, { type: 'button', title: t('On or off: %1', row.label || t('blocks')) })
      head.textContent = row.label || t('blocks')
      head.style.gridArea = `1 / ${columns[0] + 2} / 2 / ${columns.at(-1) + 3}`
      head.addEventListener('click', () => this.set(names, !names.every((name) => this.kept.has(name)), true))
    }
    map.rows.forEach(([kind, stream], i) => {
      const label = element('div', 'ufm-label', grid)
      element('b', '', label).textContent = i && map.rows[i - 1][0] === kind ? '' : kind
      element('span', '', label).textContent = stream
      label.style.gridArea = `${i + 2} / 1`
    })
    this.cells = map.cells.map(([column, row, span, , , , , share], i) => {
      const cell = element('div', 'ufm-cell', grid, { 'data-column': column, 'data-cell': i })
      cell.style.gridArea = `${row + 2} / ${column + 2} / span ${span} / span 1`
      cell.style.background = colour(share / map.top)
      return cell
    })
    const single = new Set(map.blocks.filter((row) => row.single).map((row) => row.label))
    this.toggles = map.columns.map((name, column) => {
      const toggle = element('button', 'ufm-toggle', grid, { type: 'button', 'data-column': column, 'aria-label': t('Keep block %1', name) })
      toggle.textContent = single.has(name) ? '' : name.replace(/^\D*/, '')
      toggle.style.gridArea = `${map.rows.length + 2} / ${column + 2}`
      toggle.classList.toggle('ufm-fifth', toggle.textContent % 5 === 0 && toggle.textContent !== '')
      toggle.disabled = !name
      return toggle
    })
    this.top.textContent = `${Math.round(map.top * 100)}% ${map.what === 'mask' ? t('switched off') : t('of directions removed')}`
    this.title.textContent = `${map.title} · ${map.digest}`
  }

  drawKept() {
    if (!this.map) return
    this.map.columns.forEach((name, i) => {
      const on = !name || this.kept.has(name)
      this.toggles[i].setAttribute('aria-pressed', String(on))
    })
    this.map.cells.forEach(([column], i) => {
      const name = this.map.columns[column]
      this.cells[i].classList.toggle('ufm-left-alone', Boolean(name) && !this.kept.has(name))
    })
    const names = this.names()
    this.all.textContent = this.kept.size < names.length ? t('All (%1 of %2)', this.kept.size, names.length) : t('All')
    this.describe(null)
  }

  /** Puts the numbers of a cell, or of a whole block, into the line below the map; of the whole mask when there is none. */
  describe(column, cell) {
    if (!this.map) return
    this.status.textContent = this.words(column === null ? null : Number(column), cell)
  }

  words(column, cell) {
    const { map } = this
    const chosen = map.cells[cell]
    if (chosen) {
      const [at, , , kind, stream, units, off, share, energy] = chosen
      const place = [map.columns[at] || t('outside of the blocks'), kind, stream].filter(Boolean).join(' ')
      const done = map.what === 'mask' ? t('switched off') : t('removed')
      let words = `${place}: ${count(off)} of ${count(units)} ${map.units[kind] ?? 'gates'} ${done} (${percent(off / Math.max(1, units))})`
      if (Math.abs(share - off / Math.max(1, units)) > 0.0005) words += `, turned down by ${percent(share)} on average`
      if (map.what === 'subspace') words += `, with ${percent(energy)} of the energy`
      return words
    }
    if (column !== null) {
      const shares = map.cells.filter(([at]) => at === column).map(([, , , kind, stream, , , share]) => `${kind} ${stream} ${percent(share)}`)
      return `${map.columns[column] || t('outside of the blocks')}: ${shares.join(', ').replaceAll('  ', ' ')}`
    }
    return Object.entries(this.shares())
      .map(([kind, share]) => `${kind} ${percent(share)}`)
      .join(', ')
  }

  /** What the blocks that stay switch off, by kind and in all, of all that the mask could. */
  shares() {
    const { map } = this
    const whole = this.names().every((name) => this.kept.has(name))
    if (whole) return map.off
    const sums = {}
    for (const [at, , , kind, , units, off] of map.cells) {
      const name = map.columns[at]
      for (const of of [kind, 'all']) {
        sums[of] ??= [0, 0]
        sums[of][0] += name && !this.kept.has(name) ? 0 : off
        sums[of][1] += units
      }
    }
    return Object.fromEntries(Object.keys(map.off).map((kind) => [kind, (sums[kind]?.[0] ?? 0) / Math.max(1, sums[kind]?.[1] ?? 1)]))
  }

  /** Shows fewer numbers where columns are narrow. */
  fit() {
    if (!this.map || !this.toggles.length) return
    this.root.classList.toggle('ufm-is-narrow', this.toggles[0].offsetWidth < NUMBERS_FROM)
  }
}
