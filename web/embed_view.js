// What an Embedded Mask node shows instead of its long text, as plain DOM. It knows nothing of ComfyUI.

import { element } from './dom.js'
import { t } from './words.js'

const LATER = 400 // ms after the last key before a text is looked at
const percent = (share) => `${(100 * share).toFixed(1)}%`
const isShare = (value) => typeof value === 'number' && value >= 0 && value <= 1
const short = (value, longest) => (typeof value === 'string' ? value.slice(0, longest) : '')

/** "11.3 KB"; all characters of these texts take one byte. */
const size = (length) => (length < 1000 ? `${length} bytes` : `${(length / 1000).toFixed(1)} KB`)

export class EmbedView {
  /**
   * @param {(text: string) => Promise<object>} inspect what a text holds; `{error}` when it holds no mask
   * @param {(text: string) => void} changed called when somebody wrote or pasted a text
   * @param {() => void} save called by the button
   */
  constructor(inspect, changed, save) {
    this.inspect = inspect
    this.changed = changed
    this.text = ''
    this.writing = false
    this.waiting = 0
    this.build(save)
  }

  build(save) {
    this.root = element('div', 'uniforget-embed widget-expands')
    this.state = element('div', 'ufe-state', this.root, { 'aria-live': 'polite' })
    this.mark = element('span', 'ufe-mark', this.state, { 'aria-hidden': 'true' })
    this.words = element('span', 'ufe-words', this.state)
    this.off = element('div', 'ufe-off', this.root)
    this.area = element('textarea', 'ufe-text ufh-scrolls', this.root, {
      'aria-label': t('The mask as text'),
      placeholder: t('Paste a mask here, or right-click Load Memorization Mask: Embed mask in workflow.'),
      spellcheck: 'false',
      autocomplete: 'off'
    })
    this.foot = element('div', 'ufe-foot', this.root)
    this.save = element('button', 'ufe-button', this.foot, { type: 'button', title: t('Save this mask into models/uniforget/') })
    this.save.textContent = t('Save as file')
    this.save.addEventListener('click', save)
    this.area.addEventListener('input', () => {
      // Who is told may show the text again at once: it is looked at when the writer has stopped.
      this.writing = true
      this.changed(this.area.value)
      this.writing = false
      clearTimeout(this.waiting)
      this.waiting = setTimeout(() => this.look(this.area.value), LATER)
    })
    // Keys belong to the text, not to the graph: Delete would remove the node.
    this.area.addEventListener('keydown', (event) => event.stopPropagation())
    this.area.addEventListener('focus', () => this.area.select())
    this.draw('empty', '')
  }

  /** Shows a text that came from the workflow or from another part of the page. */
  show(text) {
    if (this.writing) return
    clearTimeout(this.waiting)
    if (this.area.value !== text) this.area.value = text
    if (text !== this.text) this.look(text)
  }

  async look(text) {
    this.text = text
    if (!text.trim()) return this.draw('empty', '')
    this.draw('looking', t('Checking ...'))
    const found = await this.inspect(text)
    if (text === this.text) this.answer(found, text)
  }

  answer(found, text) {
    if (found.error) return this.draw('bad', short(found.error, 500))
    const kind = found.hard === false ? t('soft mask') : t('mask')
    this.draw('good', `${short(found.family, 60)} ${kind} ${short(found.digest, 20)} · ${size(text.trim().length)}`)
    const shares = Object.entries(found.off ?? {}).filter(([, share]) => isShare(share))
    this.off.textContent = `${t('switched off')}: ${shares.map(([name, share]) => `${short(name, 10)} ${percent(share)}`).join(', ')}`
    const base = short(found.base_name, 60)
    if (base) this.off.textContent += ` · ${t('learned on %1', base)}`
  }

  /** @param {'empty' | 'looking' | 'good' | 'bad'} state */
  draw(state, words) {
    this.root.dataset.state = state
    this.mark.textContent = { good: '✓', bad: '!', looking: '…', empty: '' }[state]
    this.words.textContent = state === 'empty' ? t('No mask yet.') : words
    this.off.textContent = ''
    this.save.disabled = state !== 'good'
  }
}
