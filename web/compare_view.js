// The before/after slider as plain DOM. It knows nothing of ComfyUI: pictures come as addresses, changes go out by callback.

import { pairAt, pairCount } from './compare_state.js'

const STEP = 0.01
const BIG_STEP = 0.1
const CRISP_FROM = 2

function element(tag, className, parent, attributes = {}) {
  const made = document.createElement(tag)
  made.className = className
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  parent?.append(made)
  return made
}

export class CompareView {
  /**
   * @param {(picture: {filename: string, subfolder: string, type: string}) => string} address of a picture
   * @param {(change: {position?: number, index?: number}, done: boolean) => void} changed called while and after something moves
   */
  constructor(address, changed) {
    this.address = address
    this.changed = changed
    this.state = null
    this.build()
    this.listen()
  }

  build() {
    // Nodes 2.0 gives the free height of the node to what is of class widget-expands
    this.root = element('div', 'uniforget-compare widget-expands')
    this.stage = element('div', 'ufc-stage', this.root)
    this.frame = element('div', 'ufc-frame', this.stage, {
      role: 'slider',
      tabindex: '0',
      'aria-valuemin': '0',
      'aria-valuemax': '100',
      'aria-orientation': 'horizontal'
    })
    this.sides = ['a', 'b'].map((side) => {
      const box = element('div', `ufc-side ufc-${side}`, this.frame)
      const image = element('img', 'ufc-image', box, { alt: '', draggable: 'false' })
      const missing = element('div', 'ufc-missing', box)
      const label = element('div', `ufc-label ufc-label-${side}`, this.frame)
      image.addEventListener('load', () => this.loaded())
      image.addEventListener('error', () => this.failed(side === 'a' ? 0 : 1))
      return { image, missing, label, picture: null }
    })
    this.line = element('div', 'ufc-line', this.frame)
    element('div', 'ufc-handle', this.line)
    this.empty = element('div', 'ufc-empty', this.stage)
    element('div', 'ufc-empty-icon', this.empty)
    element('div', '', this.empty).textContent = 'Run the workflow: before and after appear here.'
    this.strip = element('div', 'ufc-strip', this.root)
    this.previous = this.button('ufc-step', '‹', 'Previous pair', () => this.go(-1))
    this.thumbs = element('div', 'ufc-thumbs', this.strip, { 'data-capture-wheel': 'true', role: 'group', 'aria-label': 'Pairs' })
    this.next = this.button('ufc-step', '›', 'Next pair', () => this.go(1))
    this.count = element('div', 'ufc-count', this.strip)
    this.note = element('div', 'ufc-note', this.root)
  }

  button(className, sign, name, action) {
    const made = element('button', className, this.strip, { type: 'button', 'aria-label': name, title: name })
    made.textContent = sign
    made.addEventListener('click', action)
    return made
  }

  listen() {
    const { frame } = this
    let dragging = null
    frame.addEventListener('pointerdown', (event) => {
      if (event.button !== 0 || dragging !== null) return
      dragging = event.pointerId
      frame.setPointerCapture(event.pointerId)
      frame.focus({ preventScroll: true })
      event.preventDefault()
      this.moveTo(event.clientX, false)
    })
    frame.addEventListener('pointermove', (event) => {
      if (event.pointerId === dragging) this.moveTo(event.clientX, false)
    })
    const end = (event) => {
      if (event.pointerId !== dragging) return
      dragging = null
      this.changed({ position: this.state.position }, true)
    }
    frame.addEventListener('pointerup', end)
    frame.addEventListener('pointercancel', end)
    frame.addEventListener('dblclick', () => this.setPosition(0.5, true))
    frame.addEventListener('keydown', (event) => this.key(event))
    // The host must neither drag the node nor pan while somebody uses the widget; its own middle button goes through.
    for (const type of ['pointerdown', 'pointermove', 'pointerup', 'dblclick']) {
      this.root.addEventListener(type, (event) => {
        const hosts = type === 'pointermove' ? !(event.buttons & 1) : event.button !== 0
        if (!hosts) event.stopPropagation()
      })
    }
    new ResizeObserver(() => this.fit()).observe(this.stage)
  }

  key(event) {
    const { position } = this.state
    const step = event.shiftKey ? BIG_STEP : STEP
    const targets = {
      ArrowLeft: position - step,
      ArrowDown: position - step,
      ArrowRight: position + step,
      ArrowUp: position + step,
      PageDown: position - BIG_STEP,
      PageUp: position + BIG_STEP,
      Home: 0,
      End: 1
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return
    if (event.key in targets) this.setPosition(targets[event.key], true)
    else if (event.key === ',') this.go(-1)
    else if (event.key === '.') this.go(1)
    else return
    event.preventDefault()
    event.stopPropagation()
  }

  moveTo(clientX, done) {
    // both ends are in screen pixels, so the canvas' zoom does not matter
    const box = this.frame.getBoundingClientRect()
    if (box.width) this.setPosition((clientX - box.left) / box.width, done)
  }

  setPosition(value, done) {
    this.state.position = Math.min(1, Math.max(0, value))
    this.drawPosition()
    this.changed({ position: this.state.position }, done)
  }

  go(by) {
    const count = pairCount(this.state.a, this.state.b)
    const index = Math.min(count - 1, Math.max(0, this.state.index + by))
    if (count && index !== this.state.index) this.select(index)
  }

  select(index) {
    this.state.index = index
    this.drawPair()
    this.changed({ index }, true)
  }

  /** Shows a state as compare_state.js makes it; this view keeps it and moves its position and index. */
  show(state) {
    this.state = state
    // the same names can hold new pictures after a run
    this.stamp = Date.now()
    const count = pairCount(state.a, state.b)
    this.root.classList.toggle('ufc-is-empty', count === 0)
    this.root.classList.toggle('ufc-is-batch', count > 1)
    this.note.textContent = state.notes.join(' ')
    this.drawStrip(count)
    this.drawPair()
    this.drawPosition()
  }

  url(picture) {
    return `${this.address(picture)}&rand=${this.stamp}`
  }

  drawStrip(count) {
    this.thumbs.replaceChildren()
    if (count < 2) return
    for (let index = 0; index < count; index++) {
      const name = `Pair ${index + 1} of ${count}`
      const thumb = element('button', 'ufc-thumb', this.thumbs, { type: 'button', 'aria-label': name, title: name })
      pairAt(this.state, index).forEach((picture, side) => {
        if (!picture) return
        const image = element('img', side ? 'ufc-b' : 'ufc-a', thumb, { alt: '', draggable: 'false', loading: 'lazy', decoding: 'async' })
        image.addEventListener('error', () => image.remove())
        image.src = this.url(picture)
      })
      thumb.addEventListener('click', () => this.select(index))
    }
  }

  drawPair() {
    const { index, labels } = this.state
    const count = pairCount(this.state.a, this.state.b)
    pairAt(this.state, index).forEach((picture, i) => {
      const side = this.sides[i]
      side.picture = picture
      side.label.textContent = labels[i]
      side.missing.textContent = picture ? '' : `No ${labels[i]} picture here.`
      side.image.classList.toggle('ufc-gone', !picture)
      if (picture) side.image.src = this.url(picture)
      else side.image.removeAttribute('src')
    })
    this.frame.setAttribute('aria-label', `Compare ${labels[0]} with ${labels[1]}`)
    this.count.textContent = `${index + 1} / ${count}`
    this.previous.disabled = index === 0
    this.next.disabled = index >= count - 1
    ;[...this.thumbs.children].forEach((thumb, i) => {
      if (i === index) thumb.setAttribute('aria-current', 'true')
      else thumb.removeAttribute('aria-current')
    })
    const current = this.thumbs.children[index]
    if (current) this.thumbs.scrollLeft = current.offsetLeft - (this.thumbs.clientWidth - current.offsetWidth) / 2
    this.fit()
  }

  drawPosition() {
    const percent = this.state.position * 100
    this.frame.style.setProperty('--ufc-position', `${percent}%`)
    this.frame.setAttribute('aria-valuenow', String(Math.round(percent)))
    this.frame.setAttribute('aria-valuetext', `${Math.round(percent)}% ${this.state.labels[0]}`)
    this.fadeLabels()
  }

  /** Hides a label that the line would cross: half of its ground would be the other side's picture. */
  fadeLabels() {
    const width = this.frame.clientWidth
    const room = [width * this.state.position, width * (1 - this.state.position)]
    this.sides.forEach(({ label }, i) => label.classList.toggle('ufc-faded', room[i] < label.offsetWidth + 10))
  }

  loaded() {
    for (const { image, missing, picture } of this.sides) {
      if (!picture || !image.naturalWidth) continue
      image.classList.remove('ufc-gone')
      missing.textContent = ''
    }
    this.fit()
  }

  failed(i) {
    const { image, missing, picture } = this.sides[i]
    if (!picture) return
    image.classList.add('ufc-gone')
    const where = picture.subfolder ? `${picture.subfolder}/${picture.filename}` : picture.filename
    missing.textContent = `The ${this.state.labels[i]} picture is not there any more (${where}). Run the workflow to make it again.`
    this.fit()
  }

  /** Gives the frame the largest size with the first picture's proportions, and keeps small pictures crisp. */
  fit() {
    const shown = this.sides.map(({ image }) => image).filter((image) => image.naturalWidth && !image.classList.contains('ufc-gone'))
    const room = [this.stage.clientWidth, this.stage.clientHeight]
    if (!this.state || !room[0] || !room[1]) return
    const [w, h] = shown.length ? [shown[0].naturalWidth, shown[0].naturalHeight] : room
    const scale = Math.min(room[0] / w, room[1] / h)
    this.frame.style.width = `${Math.floor(w * scale)}px`
    this.frame.style.height = `${Math.floor(h * scale)}px`
    for (const image of shown) {
      const enlarged = Math.min((w * scale) / image.naturalWidth, (h * scale) / image.naturalHeight)
      image.classList.toggle('ufc-crisp', enlarged >= CRISP_FROM)
    }
    this.fadeLabels()
  }
}
