// Two pictures, compared in five ways, as plain DOM. It knows nothing of ComfyUI: pictures come as addresses, changes go out by callback.

import { Bar } from './compare_bar.js'
import { Flicker } from './compare_flicker.js'
import { listenToKeys, listenToPointers } from './compare_input.js'
import { pairAt, pairCount, settingsText } from './compare_state.js'
import { WHOLE, panned, transform, zoomedAt } from './compare_zoom.js'
import { element } from './dom.js'
import { t } from './words.js'

const CRISP_FROM = 2
const SLIDERS = ['horizontal', 'vertical']

export class CompareView {
  /**
   * @param {(picture: {filename: string, subfolder: string, type: string}) => string} address of a picture
   * @param {(change: object, done: boolean) => void} changed gets parts of the state while and after something moves
   * @param {() => string} title of what the settings are of
   */
  constructor(address, changed, title = () => 'Compare') {
    this.address = address
    this.changed = changed
    this.state = null
    this.urls = ['', '']
    this.build(title)
    this.flicker = new Flicker(this.frame)
    listenToPointers(this)
    listenToKeys(this)
    this.keepFromHost()
    new ResizeObserver(() => this.fit()).observe(this.stage)
  }

  build(title) {
    // Nodes 2.0 gives the free height of the node to what is of class widget-expands
    this.root = element('div', 'uniforget-compare widget-expands')
    this.stage = element('div', 'ufc-stage', this.root)
    this.frame = element('div', 'ufc-frame', this.stage, { tabindex: '0' })
    this.pictures = element('div', 'ufc-pictures', this.frame)
    this.sides = ['a', 'b'].map((side, i) => {
      const box = element('div', `ufc-side ufc-${side}`, this.pictures)
      const image = element('img', 'ufc-image', box, { alt: '', draggable: 'false' })
      const missing = element('div', 'ufc-missing', box)
      const label = element('div', `ufc-label ufc-label-${side}`, this.frame)
      image.addEventListener('load', () => this.loaded())
      image.addEventListener('error', () => this.failed(i))
      return { box, image, missing, label, picture: null }
    })
    this.line = element('div', 'ufc-line', this.frame)
    element('div', 'ufc-handle', this.line)
    this.empty = element('div', 'ufc-empty', this.stage)
    element('div', 'ufc-empty-icon', this.empty)
    element('div', '', this.empty).textContent = t('Run the workflow: before and after appear here.')
    this.bar = new Bar(this, () => `${title()}\n${settingsText(this.state)}\n`)
    this.strip = element('div', 'ufc-strip', this.root)
    this.previous = this.button('‹', t('Previous pair'), () => this.go(-1))
    this.thumbs = element('div', 'ufc-thumbs', this.strip, { role: 'group', 'aria-label': t('Pairs') })
    this.next = this.button('›', t('Next pair'), () => this.go(1))
    this.count = element('div', 'ufc-count', this.strip)
    this.note = element('div', 'ufc-note', this.root)
  }

  button(sign, name, action) {
    const made = element('button', 'ufc-step', this.strip, { type: 'button', 'aria-label': name, title: name })
    made.textContent = sign
    made.addEventListener('click', action)
    return made
  }

  /** The host must neither drag the node nor pan while somebody uses the widget; its own middle button goes through. */
  keepFromHost() {
    for (const type of ['pointerdown', 'pointermove', 'pointerup', 'dblclick']) {
      this.root.addEventListener(type, (event) => {
        const hosts = type === 'pointermove' ? !(event.buttons & 1) : event.button !== 0
        if (!hosts) event.stopPropagation()
      })
    }
  }

  // --- what input asks for -------------------------------------------------------------------------------------------

  /** Whether dragging from this element moves the slider: from anywhere, but only from the line while zoomed. */
  slides(target) {
    return SLIDERS.includes(this.state.mode) && (this.state.zoom.scale === 1 || this.line.contains(target))
  }

  /** The screen's rectangle of the picture that is under a point. */
  paneAt(x, y) {
    if (this.state.mode !== 'side') return this.frame.getBoundingClientRect()
    const boxes = this.sides.map(({ box }) => box.getBoundingClientRect())
    return boxes.find((box) => x >= box.left && x <= box.right && y >= box.top && y <= box.bottom) ?? boxes[0]
  }

  slideTo({ clientX, clientY }, box) {
    if (!box.width || !box.height) return
    const upright = this.state.mode === 'vertical'
    this.setPosition(upright ? (clientY - box.top) / box.height : (clientX - box.left) / box.width, false)
  }

  setPosition(value, done) {
    this.state.position = Math.min(1, Math.max(0, value))
    this.drawPosition()
    this.changed({ position: this.state.position }, done)
  }

  pan(dx, dy, done) {
    this.setZoom(panned(this.state.zoom, dx, dy), done)
  }

  /** Enlarges by `factor` around a place of the frame, in [0, 1]. */
  zoomBy(factor, x = 0.5, y = 0.5, done = true) {
    this.setZoom(zoomedAt(this.state.zoom, factor, x, y), done)
  }

  unzoom() {
    this.setZoom({ ...WHOLE }, true)
  }

  setZoom(zoom, done) {
    this.state.zoom = zoom
    this.drawZoom()
    this.changed({ zoom }, done)
  }

  setMode(mode) {
    this.state.mode = mode
    this.drawMode()
    this.changed({ mode }, true)
  }

  setGain(gain) {
    this.state.gain = gain
    this.drawMode()
    this.changed({ gain }, true)
  }

  setWheel(wheel) {
    this.state.wheel = wheel
    this.bar.draw(this.state)
    this.changed({ wheel }, true)
  }

  /** A finger or the mouse is down: flickering waits, so that one can look. */
  hold(held) {
    this.flicker.held = held
  }

  keep() {
    const { position, zoom } = this.state
    this.changed({ position, zoom }, true)
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

  // --- what is seen --------------------------------------------------------------------------------------------------

  /** Shows a state as compare_state.js makes it; this view keeps and changes it. */
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
    this.drawMode()
    this.drawZoom()
  }

  url(picture) {
    return `${this.address(picture)}&rand=${this.stamp}`
  }

  drawStrip(count) {
    this.thumbs.replaceChildren()
    if (count < 2) return
    for (let index = 0; index < count; index++) {
      const name = t('Pair %1 of %2', index + 1, count)
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
      side.missing.textContent = picture ? '' : t('No picture here: %1', labels[i])
      side.image.classList.toggle('ufc-gone', !picture)
      if (picture) side.image.src = this.url(picture)
      else side.image.removeAttribute('src')
    })
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

  drawMode() {
    const { mode, gain, labels } = this.state
    this.root.dataset.mode = mode
    this.frame.style.setProperty('--ufc-gain', String(gain))
    const sliding = SLIDERS.includes(mode)
    this.frame.setAttribute('role', sliding ? 'slider' : 'group')
    this.frame.setAttribute('aria-label', t('Compare %1 with %2', ...labels))
    const values = { 'aria-valuemin': '0', 'aria-valuemax': '100', 'aria-orientation': mode }
    for (const name of [...Object.keys(values), 'aria-valuenow', 'aria-valuetext']) {
      if (sliding && name in values) this.frame.setAttribute(name, values[name])
      else this.frame.removeAttribute(name)
    }
    this.sides[0].label.textContent = mode === 'difference' ? `difference × ${gain}` : labels[0]
    this.sides[1].label.textContent = labels[1]
    if (mode === 'flicker') this.flicker.start()
    else this.flicker.stop()
    this.bar.draw(this.state)
    this.fit()
    this.drawPosition()
  }

  drawPosition() {
    const { position, mode, labels } = this.state
    const percent = position * 100
    this.frame.style.setProperty('--ufc-position', `${percent}%`)
    if (SLIDERS.includes(mode)) {
      this.frame.setAttribute('aria-valuenow', String(Math.round(percent)))
      this.frame.setAttribute('aria-valuetext', `${Math.round(percent)}% ${labels[0]}`)
    }
    this.fadeLabels()
  }

  drawZoom() {
    const { zoom } = this.state
    this.frame.style.setProperty('--ufc-view', transform(zoom))
    this.root.classList.toggle('ufc-is-zoomed', zoom.scale > 1)
    this.bar.drawZoom(zoom)
    this.sharpen()
  }

  /** Hides a label that the line would cross: half of its ground would be the other side's picture. */
  fadeLabels() {
    const { mode, position } = this.state
    const along = { horizontal: 'width', vertical: 'height' }[mode]
    this.sides.forEach(({ label }, i) => {
      const room = (this.size?.[along] ?? 0) * (i ? 1 - position : position)
      label.classList.toggle('ufc-faded', Boolean(along && this.size) && room < this.size.labels[i][along] + 10)
    })
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
    missing.textContent = t('The picture is not there any more: %1 (%2). Run the workflow to make it again.', this.state.labels[i], where)
    this.fit()
  }

  /** Gives the frame the largest size with the first picture's proportions; side by side, or one above the other if that is larger. */
  fit() {
    const room = [this.stage.clientWidth, this.stage.clientHeight]
    if (!this.state || !room[0] || !room[1]) return
    const shown = this.shown()
    const [w, h] = shown.length ? [shown[0].naturalWidth, shown[0].naturalHeight] : room
    const layouts = this.state.mode === 'side' && shown.length ? [[2, 1], [1, 2]] : [[1, 1]]
    const scales = layouts.map(([across, down]) => Math.min(room[0] / (w * across), room[1] / (h * down)))
    const best = scales[1] > scales[0] ? 1 : 0
    const [across, down] = layouts[best]
    const width = Math.floor(w * scales[best] * across)
    const height = Math.floor(h * scales[best] * down)
    this.frame.style.width = `${width}px`
    this.frame.style.height = `${height}px`
    this.frame.classList.toggle('ufc-stacked', down > 1)
    this.frame.classList.toggle('ufc-partial', shown.length < 2)
    // read once, so that dragging never waits for a layout
    const labels = this.sides.map(({ label }) => ({ width: label.offsetWidth, height: label.offsetHeight }))
    this.size = { width, height, pane: [width / across, height / down], labels }
    this.flicker.resume()
    this.sharpen()
    this.fadeLabels()
  }

  shown() {
    return this.sides.map(({ image }) => image).filter((image) => image.naturalWidth && !image.classList.contains('ufc-gone'))
  }

  /** Keeps enlarged pictures crisp, so that one sees their real pixels. */
  sharpen() {
    if (!this.size) return
    const [width, height] = this.size.pane
    for (const image of this.shown()) {
      const enlarged = this.state.zoom.scale * Math.min(width / image.naturalWidth, height / image.naturalHeight)
      image.classList.toggle('ufc-crisp', enlarged >= CRISP_FROM)
    }
  }
}
