// The grid of a sweep as plain DOM. It knows nothing of ComfyUI: pictures come as addresses, clicks go out by callback.

import { element } from './dom.js'
import { strengthText } from './sweep_state.js'
import { t } from './words.js'

const CRISP_FROM = 1.5
const hint = () => t('Click a picture to use its strength.')
const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }

export class SweepView {
  /**
   * @param {(picture: {filename: string, subfolder: string, type: string}) => string} address of a picture
   * @param {(cell: number) => {done: boolean, message: string}} choose called when somebody chooses a cell: whether it is now, and what
   *   to tell them
   * @param {() => void} search called when somebody wants the least strength that is enough
   */
  constructor(address, choose, search) {
    this.address = address
    this.choose = choose
    this.search = search
    // Nodes 2.0 gives the free height of the node to what is of class widget-expands
    this.root = element('div', 'uniforget-sweep widget-expands')
    const top = element('div', 'ufs-top', this.root)
    this.message = element('div', 'ufs-message', top, { role: 'status' })
    this.find = element('button', 'ufs-find', top, { type: 'button' })
    this.find.addEventListener('click', () => this.findClicked())
    this.scroll = element('div', 'ufs-scroll ufh-scrolls', this.root)
    this.grid = element('div', 'ufs-grid', this.scroll, { role: 'group', 'aria-label': t('Strengths and prompts') })
    this.note = element('div', 'ufs-note', this.root)
    this.grid.addEventListener('keydown', (event) => this.key(event))
    new ResizeObserver(() => this.sharpen()).observe(this.grid)
  }

  /** Shows a state as sweep_state.js makes it. */
  show(state) {
    this.state = state
    // the same names can hold new pictures after a run
    this.stamp = Date.now()
    const { strengths, rows, cells, notes } = state
    this.root.classList.toggle('ufs-is-empty', !cells.length)
    this.grid.replaceChildren()
    this.grid.style.setProperty('--ufs-columns', Math.max(1, strengths.length))
    this.heads = strengths.map((strength, column) => this.head(strength, column))
    this.cells = []
    rows.forEach(({ prompt, seed, everyday }, row) => {
      const title = element('div', 'ufs-row', this.grid, { title: prompt })
      element('span', 'ufs-prompt', title).textContent = prompt
      element('span', 'ufs-seed', title).textContent = `${t('seed %1', seed)}${everyday ? `, ${t('should stay')}` : ''}`
      strengths.forEach((_, column) => this.cells.push(this.cell(row * strengths.length + column)))
    })
    this.note.textContent = notes.join(' ')
    const { found } = state
    this.find.textContent = found === null ? t('Find my strength') : t('Use %1', strengthText(found))
    this.find.title = found === null ? t('Searches for the least strength at which the pictures are gone') : t('Sets it in the nodes that apply this mask')
    if (!cells.length) this.tell(t('Run the workflow: pictures at several strengths appear here.'))
    else this.tell(found === null ? hint() : `${t('Gone from strength %1 on.', strengthText(found))} ${hint()}`)
    this.mark()
  }

  head(strength, column) {
    const head = element('div', 'ufs-head', this.grid)
    element('span', 'ufs-strength', head).textContent = strength === 0 ? t('original') : strengthText(strength)
    const { cells, strengths, rows } = this.state
    const found = rows.map((_, row) => cells[row * strengths.length + column].similarity).filter((value) => value !== null)
    if (strength !== 0 && rows.length > 1 && found.length) {
      element('span', 'ufs-mean', head).textContent = t('mean alike %1', (found.reduce((sum, value) => sum + value, 0) / found.length).toFixed(2))
    }
    return head
  }

  cell(index) {
    const { cells, strengths, rows } = this.state
    const { similarity, word } = cells[index]
    const { prompt, seed } = rows[Math.floor(index / strengths.length)]
    const original = strengths[index % strengths.length] === 0
    const measured = similarity === null ? t('not measured') : t('alike %1', similarity.toFixed(2))
    const likeness = original ? t('original') : word ? t(word) : measured
    const made = element('button', 'ufs-cell', this.grid, {
      type: 'button',
      title: `${measured}: ${t('1 is the same picture, about 0.2 is usual for two that have nothing in common. Click to use this strength.')}`,
      'aria-label': [t('strength %1', strengthText(strengths[index % strengths.length])), prompt, t('seed %1', seed), original || !word ? '' : t(word), measured].filter(Boolean).join(', ')
    })
    const frame = element('span', 'ufs-frame', made)
    const image = element('img', 'ufs-image', frame, { alt: '', draggable: 'false', loading: 'lazy', decoding: 'async' })
    image.addEventListener('load', () => this.sharpen())
    image.addEventListener('error', () => this.failed(frame, index))
    const alike = element('span', 'ufs-alike', made)
    const bar = element('span', 'ufs-bar', alike)
    element('span', 'ufs-fill', bar).style.width = `${Math.max(0, similarity ?? 0) * 100}%`
    element('span', `ufs-value${original ? '' : ` ufs-is-${word}`}`, alike).textContent = likeness
    made.addEventListener('click', () => this.pick(index))
    if (cells[index].filename) image.src = `${this.address(cells[index])}&rand=${this.stamp}`
    else this.failed(frame, index)
    return made
  }

  findClicked() {
    const { found, strengths } = this.state
    if (found === null) this.search()
    else this.pick(strengths.indexOf(found))
  }

  failed(frame, index) {
    const { filename, subfolder } = this.state.cells[index] ?? {}
    frame.replaceChildren()
    element('span', 'ufs-missing', frame, { title: subfolder ? `${subfolder}/${filename}` : filename }).textContent = t('not there')
    this.tell(t('Some pictures are not there any more. Run the workflow to make them again.'))
  }

  pick(index) {
    const { done, message } = this.choose(index)
    this.tell(message)
    if (!done) return
    this.state.chosen = index
    this.mark()
  }

  key(event) {
    const at = this.cells.indexOf(event.target)
    const move = KEYS[event.key]
    if (at < 0 || !move || event.ctrlKey || event.metaKey || event.altKey) return
    event.preventDefault()
    event.stopPropagation()
    const width = this.state.strengths.length
    const row = Math.floor(at / width) + move[0]
    const column = (at % width) + move[1]
    if (row < 0 || column < 0 || row >= this.state.rows.length || column >= width) return
    this.cells[row * width + column].focus()
  }

  /** Marks the chosen cell and the strength it stands for. */
  mark() {
    const { chosen, strengths } = this.state
    const column = chosen < 0 ? -1 : chosen % strengths.length
    this.heads.forEach((head, i) => head.classList.toggle('ufs-chosen', i === column))
    this.cells.forEach((cell, i) => {
      cell.setAttribute('aria-pressed', String(i === chosen))
      cell.classList.toggle('ufs-column', column >= 0 && i % strengths.length === column)
      // one stop for the tab key; arrows move from there
      cell.tabIndex = i === Math.max(0, chosen) ? 0 : -1
    })
  }

  tell(message) {
    this.message.textContent = message
  }

  /** Keeps enlarged small pictures crisp. */
  sharpen() {
    for (const image of this.grid.querySelectorAll('.ufs-image')) {
      image.classList.toggle('ufs-crisp', image.naturalWidth > 0 && image.clientWidth / image.naturalWidth >= CRISP_FROM)
    }
  }
}
