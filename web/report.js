// Puts "open" and "save" below the Report node: its file in a window over the page, for the classic and the Nodes 2.0 renderer.

import { app } from '../../scripts/app.js'
import { element, loadStyle } from './dom.js'
import { addPanel, address as addressOf, chain, isOne } from './host.js'
import { t } from './words.js'

const NODE = 'UniForgetReport'
const PROPERTY = 'uniforget_report'

function make(tag, className, text = '') {
  const made = element(tag, className)
  made.textContent = text
  return made
}

/** The file that `value` names, or null. Workflows come from anybody: only an .html in ComfyUI's output folder is one. */
function clean(value) {
  if (typeof value !== 'object' || value === null) return null
  const { filename, subfolder } = value
  if (typeof filename !== 'string' || !/^[^/\\]{1,250}\.html$/i.test(filename)) return null
  return { filename, subfolder: typeof subfolder === 'string' ? subfolder.slice(0, 1024) : '' }
}

const address = (file) => addressOf({ ...file, type: 'output' })

/** ComfyUI hands HTML out as a download only. So it is fetched, and shown where it can neither run scripts nor reach the page. */
async function open(file, status) {
  status.textContent = ''
  let answer
  try {
    answer = await fetch(address(file))
  } catch {
    answer = { ok: false }
  }
  if (!answer.ok) {
    status.textContent = t('The report is not there any more. Run the workflow again.')
    return
  }
  const dialog = make('dialog', 'uniforget-report-dialog')
  const frame = make('iframe', '')
  frame.setAttribute('sandbox', 'allow-downloads')
  frame.title = file.filename
  frame.srcdoc = await answer.text() // not by a blob's address: ComfyUI's policy can forbid those in frames
  const close = make('button', '', t('Close'))
  close.type = 'button'
  close.addEventListener('click', () => dialog.close())
  const bar = make('div', 'ufr-bar')
  const name = make('span', '', file.filename)
  bar.append(name, save(file), close)
  dialog.append(bar, frame)
  // what is typed here is not for the graph behind it
  for (const type of ['keydown', 'keyup', 'wheel', 'pointerdown']) dialog.addEventListener(type, (event) => event.stopPropagation())
  dialog.addEventListener('close', () => dialog.remove())
  document.body.append(dialog)
  dialog.showModal()
}

function save(file) {
  const link = make('a', 'ufr-save', t('Save a copy'))
  link.href = address(file)
  link.download = file.filename
  return link
}

function addReport(node) {
  const root = make('div', 'uniforget-report')
  const status = make('div', 'ufr-status')
  status.setAttribute('role', 'status')
  const show = (value) => {
    const file = clean(value)
    if (!file) {
      root.replaceChildren(make('div', 'ufr-empty', t('Run the workflow: the report appears here.')))
      return
    }
    const button = make('button', 'ufr-open', t('Open the report'))
    button.type = 'button'
    button.addEventListener('click', () => open(file, status))
    const row = make('div', 'ufr-row')
    row.append(button, save(file))
    status.textContent = ''
    root.replaceChildren(row, make('div', 'ufr-path', `output/${file.subfolder ? `${file.subfolder}/` : ''}${file.filename}`), status)
  }
  addPanel(node, 'report', root, 84)
  show(node.properties[PROPERTY])
  chain(node, 'onConfigure', () => show(node.properties?.[PROPERTY]))
  chain(node, 'onExecuted', (output) => {
    const file = clean(output?.[PROPERTY]?.[0])
    if (file) node.properties[PROPERTY] = file
    show(node.properties[PROPERTY])
    app.graph?.setDirtyCanvas?.(true, false)
  })
}

app.registerExtension({
  name: 'UniForget.Report',
  setup: () => loadStyle('report.css'),
  nodeCreated(node) {
    if (!isOne(node, NODE)) return
    node.properties ??= {}
    addReport(node)
  }
})
