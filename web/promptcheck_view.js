// The sortable table of prompts as plain DOM. It knows nothing of ComfyUI: changes go out by callback.

import { shownColumns, sorted } from './promptcheck_state.js'
import { mark, t } from './words.js'

const WORDS = { memorized: mark('likely memorized'), unclear: mark('cannot tell'), usual: mark('looks usual') }

function element(tag, className, parent, attributes = {}) {
  const made = document.createElement(tag)
  made.className = className
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  parent?.append(made)
  return made
}

function written(value, kind) {
  if (value === null) return '–'
  if (kind === 'verdict') return t(WORDS[value])
  if (kind === 'times') return `${value.toFixed(2)}×`
  return kind === 'share' ? `${Math.round(value * 100)} %` : value
}

export class PromptTable {
  /** @param {(change: {by: string, down: boolean}) => void} changed called when somebody sorts */
  constructor(changed) {
    this.changed = changed
    this.state = null
    // Nodes 2.0 gives the free height of the node to what is of class widget-expands
    this.root = element('div', 'uniforget-prompts widget-expands')
    this.empty = element('div', 'ufp-empty', this.root)
    this.empty.textContent = t('Run the workflow: the table appears here. Click a column to sort.')
    this.scroller = element('div', 'ufp-scroller ufh-scrolls', this.root, { tabindex: '0', 'aria-label': t('Prompts') })
    const table = element('table', 'ufp-table', this.scroller)
    this.head = element('tr', '', element('thead', '', table))
    this.body = element('tbody', '', table)
    // The host must neither drag the node nor pan while somebody uses the table; its own middle button goes through.
    for (const type of ['pointerdown', 'pointermove', 'pointerup', 'dblclick']) {
      this.root.addEventListener(type, (event) => {
        const hosts = type === 'pointermove' ? !(event.buttons & 1) : event.button !== 0
        if (!hosts) event.stopPropagation()
      })
    }
  }

  /** Shows a state as promptcheck_state.js makes it. */
  show(state) {
    this.state = state
    this.root.classList.toggle('ufp-is-empty', state.rows.length === 0)
    const columns = shownColumns(state)
    this.head.replaceChildren(...columns.map((column) => this.header(column)))
    this.body.replaceChildren(...sorted(state).map((row) => this.line(row, columns)))
  }

  header({ key, title, kind, hint }) {
    const cell = element('th', `ufp-${kind}`, null, { scope: 'col', title: t(hint) })
    const { by, down } = this.state
    if (key === by) cell.setAttribute('aria-sort', down ? 'descending' : 'ascending')
    const button = element('button', 'ufp-sort', cell, { type: 'button', 'data-key': key })
    button.textContent = t(title)
    button.addEventListener('click', () => this.sort(key, key === by ? !down : kind !== 'text'))
    return cell
  }

  sort(by, down) {
    this.show({ ...this.state, by, down })
    this.head.querySelector(`[data-key='${by}']`)?.focus({ preventScroll: true })
    this.changed({ by, down })
  }

  line(row, columns) {
    const made = element('tr', '')
    for (const { key, kind } of columns) {
      const cell = element('td', `ufp-${kind}`, made)
      const inside = kind === 'verdict' && row[key] ? element('span', `ufp-chip ufp-is-${row[key]}`, cell) : cell
      inside.textContent = written(row[key], kind)
      if (kind === 'text') cell.title = row[key]
    }
    return made
  }
}
