// What a node has to say, in the node: its own panel instead of the page's, which is two lines high, takes text for HTML in one renderer,
// loses line breaks in the other, and makes the node grow over its neighbours.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { element, loadStyle } from './dom.js'
import { addPanel, chain, isOne, shareWithCanvas } from './host.js'

// Lines of room. Longer texts scroll; nothing moves when they come.
const LINES = {
  UniForgetApply: 5,
  UniForgetLearn: 5,
  UniForgetRecover: 4,
  UniForgetLoadMask: 4,
  UniForgetSaveMask: 5,
  UniForgetEmbeddedMask: 4,
  UniForgetCombine: 5,
  UniForgetFind: 6,
  UniForgetVariety: 4,
  UniForgetThreshold: 4,
  UniForgetSaveSanitized: 6,
  UniForgetCleanLora: 6,
  UniForgetAttackCheck: 6,
  UniForgetGuard: 5,
  UniForgetCompact: 4,
  UniForgetLoadCompact: 3,
  UniForgetMaskMap: 2,
  UniForgetPictureCheck: 8,
  UniForgetPromptCheck: 2,
  UniForgetReport: 3,
  UniForgetDemoScore: 6
}
// Nodes with another panel, which gets what room there is.
const FIXED = ['UniForgetMaskMap', 'UniForgetPromptCheck', 'UniForgetReport', 'UniForgetLearn', 'UniForgetVariety']
const LINE = 17
const KEPT = 40000

/** The node that runs as `id`: "7", or "3:7" inside of the subgraph node 3. */
function find(id) {
  let node = null
  let graph = app.rootGraph ?? app.graph
  for (const part of String(id).split(':')) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part))
    graph = node?.subgraph
  }
  return node
}

function addText(node, lines) {
  const root = element('div', 'uniforget-text ufh-scrolls', null, { role: 'status' })
  root.style.setProperty('--uft-lines', lines)
  shareWithCanvas(root)
  addPanel(node, 'text', root, lines * LINE + 12, null, FIXED.some((kind) => isOne(node, kind)))
  node.uniforgetSay = (text) => {
    root.textContent = String(text ?? '').slice(0, KEPT)
    root.title = root.textContent
  }
  chain(node, 'onExecuted', (output) => {
    const text = output?.text
    if (text !== undefined) node.uniforgetSay(Array.isArray(text) ? text.join('\n') : text)
  })
}

app.registerExtension({
  name: 'UniForget.Text',
  setup() {
    loadStyle('text.css')
    api.addEventListener('uniforget.text', ({ detail }) => find(detail?.node)?.uniforgetSay?.(detail.text))
  },
  nodeCreated(node) {
    const kind = Object.keys(LINES).find((name) => isOne(node, name))
    if (kind) addText(node, LINES[kind])
  }
})
