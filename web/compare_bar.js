// The row of buttons above the pictures.

import { GAINS } from './compare_state.js'
import { copyText, element, icon } from './dom.js'
import { mark, t } from './words.js'

const FRAME = 'M1.5 2.5h13v11h-13z'
const TOLD = 1800 // ms

const MODE_BUTTONS = [
  ['horizontal', mark('Slider, left and right (1)'), `${FRAME} M8 1v14`, 'M1.5 2.5H8v11H1.5z'],
  ['vertical', mark('Slider, up and down (2)'), `${FRAME} M0 8h16`, 'M1.5 2.5h13V8h-13z'],
  ['flicker', mark('Flicker: one after the other (3)'), 'M1.5 5.5h9v8h-9z M5 3V2.5h9.5V11H13', 'M1.5 5.5h9v8h-9z'],
  ['difference', mark('Difference, amplified (4)'), 'M6 13a5 5 0 1 1 0-10a5 5 0 0 1 0 10z M10 13a5 5 0 1 1 0-10a5 5 0 0 1 0 10z', 'M8 3.4a5 5 0 0 1 0 9.2a5 5 0 0 1 0-9.2z'],
  ['side', mark('Side by side (5)'), 'M1.5 2.5H7v11H1.5z M9 2.5h5.5v11H9z']
]

const COPY = 'M5.5 5.5h8v9h-8z M3.5 10.5h-1v-9h8v2'
const WHEEL = 'M7 12A5 5 0 1 1 7 2a5 5 0 0 1 0 10z M10.7 10.7L15 15 M7 4.5v5 M5.5 5.8L7 4.3l1.5 1.5 M5.5 8.2L7 9.7l1.5-1.5'

export class Bar {
  /** @param view a CompareView @param {() => string} settings what "copy settings" copies */
  constructor(view, settings) {
    this.root = element('div', 'ufc-bar', view.root, { role: 'toolbar', 'aria-label': t('View') })
    this.settings = settings
    const modes = element('div', 'ufc-group', this.root, { role: 'group', 'aria-label': t('Mode') })
    this.modes = MODE_BUTTONS.map(([mode, name, lines, filled]) => {
      const button = this.button(modes, t(name), () => view.setMode(mode), icon(lines, filled))
      button.dataset.mode = mode
      return button
    })
    this.gain = element('select', 'ufc-gain', this.root, { 'aria-label': t('Amplification'), title: t('How many times the difference is amplified') })
    for (const gain of GAINS) element('option', '', this.gain, { value: gain }).textContent = `${gain}×`
    this.gain.addEventListener('change', () => view.setGain(Number(this.gain.value)))
    element('div', 'ufc-space', this.root)
    const zoom = element('div', 'ufc-group', this.root, { role: 'group', 'aria-label': t('Zoom') })
    this.out = this.button(zoom, t('Zoom out (-)'), () => view.zoomBy(1 / 1.25), '−')
    this.level = this.button(zoom, t('Show the whole picture (0)'), () => view.unzoom(), '1×')
    this.level.classList.add('ufc-level')
    this.in = this.button(zoom, t('Zoom in (+)'), () => view.zoomBy(1.25), '+')
    this.wheel = this.button(zoom, t('The mouse wheel zooms the pictures, without Ctrl too'), () => view.setWheel(!view.state.wheel), icon(WHEEL))
    this.copy = this.button(this.root, t('Copy settings: how these pictures were made'), () => this.copySettings(), icon(COPY))
    this.told = element('div', 'ufc-told', view.stage, { role: 'status' })
    this.byHand = element('textarea', 'ufc-by-hand ufh-scrolls', view.stage, { readonly: '', hidden: '', 'aria-label': t('Settings, to copy by hand') })
    this.byHand.addEventListener('blur', () => (this.byHand.hidden = true))
    this.byHand.addEventListener('keydown', (event) => event.stopPropagation())
    view.root.prepend(this.root)
  }

  button(parent, name, act, content) {
    const made = element('button', 'ufc-button', parent, { type: 'button', 'aria-label': name, title: name })
    made.append(content)
    made.addEventListener('click', act)
    return made
  }

  /** Shows the state's mode, amplification and zoom. */
  draw({ mode, gain, zoom, wheel }) {
    for (const button of this.modes) button.setAttribute('aria-pressed', String(button.dataset.mode === mode))
    this.gain.value = String(gain)
    this.gain.hidden = mode !== 'difference'
    this.wheel.setAttribute('aria-pressed', String(wheel))
    this.drawZoom(zoom)
  }

  drawZoom({ scale }) {
    this.level.textContent = `${scale < 9.95 ? scale.toFixed(1).replace('.0', '') : Math.round(scale)}×`
    this.out.disabled = scale === 1
  }

  async copySettings() {
    const text = this.settings()
    if (await copyText(text)) return this.tell(t('Settings copied'))
    this.byHand.value = text
    this.byHand.hidden = false
    this.byHand.focus()
    this.byHand.select()
    this.tell(t('The browser refused: press Ctrl+C'))
  }

  tell(words) {
    this.told.textContent = words
    clearTimeout(this.timer)
    this.timer = setTimeout(() => (this.told.textContent = ''), TOLD)
  }
}
