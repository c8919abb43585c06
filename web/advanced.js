// Nodes show what everybody sets, and the rest behind a button; where the page hides advanced settings by itself, it does that.

import { app } from '../../scripts/app.js'
import { chain, widgetOf } from './host.js'
import { t } from './words.js'

const OURS = /^UniForget/
const OWN_BUTTON = 'Comfy.Node.AlwaysShowAdvancedWidgets' // a setting of pages that have a button of their own in Nodes 2.0

/** Advanced settings, and what the page puts below them ("control after generate"). */
function advanced(node) {
  const found = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
  return [...found, ...found.flatMap((widget) => widget.linkedWidgets ?? [])]
}

const known = () => app.extensionManager?.setting?.get(OWN_BUTTON) !== undefined && globalThis.LiteGraph?.vueNodesMode

function fold(node) {
  const widgets = advanced(node)
  if (!widgets.length || known()) return
  const button = node.addWidget('button', t('more settings'), null, () => turn(!node.showAdvanced), { serialize: false })
  button.serialize = false
  const draw = () => {
    for (const widget of widgets) {
      widget.advanced = true // what the classic renderer looks at
      widget.options.hidden = !node.showAdvanced // and Nodes 2.0
      // the classic renderer leaves room for what it does not draw
      if (node.showAdvanced) delete widget.computeSize
      else widget.computeSize = () => [0, -4]
    }
    button.label = node.showAdvanced ? t('fewer settings') : t('more settings')
    node.widgets = [...node.widgets] // Nodes 2.0 notices that
  }
  const turn = (shown) => {
    node.showAdvanced = shown
    draw()
    const [width, height] = node.size
    const needed = node.computeSize()[1]
    node.setSize([width, shown ? Math.max(height, needed) : needed])
    app.graph?.setDirtyCanvas?.(true, true)
  }
  draw()
  chain(node, 'onConfigure', draw)
}

/** Shows the beta that a preset stands for. */
function follow(node, betas) {
  const [preset, beta] = [widgetOf(node, 'preset'), widgetOf(node, 'beta')]
  if (!preset || !beta || typeof betas !== 'object') return
  const draw = () => {
    if (Object.hasOwn(betas, preset.value)) beta.value = betas[preset.value]
  }
  draw()
  chain(preset, 'callback', draw)
  chain(node, 'onConfigure', draw)
}

app.registerExtension({
  name: 'UniForget.Advanced',
  nodeCreated(node) {
    if (!OURS.test(node.comfyClass ?? node.constructor?.comfyClass ?? '')) return
    follow(node, node.constructor?.nodeData?.input?.required?.preset?.[1]?.uniforget_betas)
    fold(node)
  }
})
