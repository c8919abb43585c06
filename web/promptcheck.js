// Puts the sortable table into Prompt Check: one DOM widget for the classic and the Nodes 2.0 renderer.

import { app } from '../../scripts/app.js'
import { loadStyle } from './dom.js'
import { addPanel, chain, isOne, keepTextLow, noticeChange, shareWithCanvas } from './host.js'
import { afterRun, clean } from './promptcheck_state.js'
import { PromptTable } from './promptcheck_view.js'

const NODE = 'UniForgetPromptCheck'
const PROPERTY = 'uniforget_prompts'
const SMALLEST = [560, 640]

function addTable(node) {
  const view = new PromptTable((change) => {
    node.properties[PROPERTY] = { ...clean(node.properties[PROPERTY]), ...change }
    noticeChange()
  })
  const show = (state) => {
    node.properties[PROPERTY] = state
    view.show(state)
  }
  shareWithCanvas(view.root)
  view.show(clean(node.properties?.[PROPERTY]))
  chain(node, 'onConfigure', () => show(clean(node.properties?.[PROPERTY])))
  chain(node, 'onExecuted', (output) => {
    show(afterRun(clean(node.properties?.[PROPERTY]), output))
    noticeChange()
  })
  addPanel(node, 'table', view.root, 220, SMALLEST)
  keepTextLow(node, 120)
}

app.registerExtension({
  name: 'UniForget.PromptCheck',
  setup: () => loadStyle('promptcheck.css'),
  nodeCreated(node) {
    if (!isOne(node, NODE)) return
    node.properties ??= {}
    addTable(node)
  }
})
