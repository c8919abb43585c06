// Puts the before/after slider into Compare (UniForget): one DOM widget for the classic and the Nodes 2.0 renderer.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { afterRun, clean } from './compare_state.js'
import { CompareView } from './compare_view.js'

const NODES = ['UniForgetCompare', 'UniForgetPreview']
const PROPERTY = 'uniforget_compare'
const SMALLEST = [340, 500]

function loadStyle() {
  const href = new URL('./compare.css', import.meta.url).href
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return
  const link = document.createElement('link')
  link.rel = 'stylesheet'
  link.href = href
  document.head.append(link)
}

const address = ({ filename, subfolder, type }) => api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)

/** Calls `after` when the node's own `name` has been called. */
function chain(node, name, after) {
  const before = node[name]
  node[name] = function (...values) {
    const result = before?.apply(this, values)
    after(...values)
    return result
  }
}

/** Lets ComfyUI notice that the workflow changed, so that a reload of the page finds it as it is now. */
function noticeChange() {
  app.graph?.setDirtyCanvas?.(true, false)
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.()
}

const isNodes2 = (element) => element.closest('[data-node-id]') !== null

/** In the classic renderer the widget lies over the canvas: what it does not use itself must go down to it. */
function passToCanvas(view) {
  const pass = (event) => {
    if (isNodes2(view.root)) return
    event.preventDefault()
    app.canvas?.canvas?.dispatchEvent(new event.constructor(event.type, event))
  }
  view.root.addEventListener('wheel', (event) => view.thumbs.contains(event.target) || pass(event), { passive: false })
  view.root.addEventListener('pointerdown', (event) => event.button === 1 && pass(event))
  view.thumbs.addEventListener(
    'wheel',
    (event) => {
      if (event.ctrlKey || event.metaKey) return
      event.preventDefault()
      event.stopPropagation()
      view.thumbs.scrollLeft += event.deltaX || event.deltaY
    },
    { passive: false }
  )
}

function addCompare(node) {
  const view = new CompareView(address, (change, done) => {
    node.properties[PROPERTY] = { ...clean(node.properties[PROPERTY]), ...change }
    if (done) noticeChange()
  })
  const show = (state) => {
    node.properties[PROPERTY] = state
    view.show(clean(state))
  }
  passToCanvas(view)
  const widget = node.addDOMWidget('compare', 'UNIFORGET_COMPARE', view.root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 240
  })
  widget.serialize = false
  view.show(clean(node.properties?.[PROPERTY]))
  chain(node, 'onConfigure', () => show(clean(node.properties?.[PROPERTY])))
  chain(node, 'onExecuted', (output) => {
    show(afterRun(clean(node.properties?.[PROPERTY]), output))
    noticeChange()
  })
  node.setSize?.([Math.max(node.size[0], SMALLEST[0]), Math.max(node.size[1], SMALLEST[1])])
}

app.registerExtension({
  name: 'UniForget.Compare',
  setup: loadStyle,
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass) && !NODES.includes(node.constructor?.comfyClass)) return
    node.properties ??= {}
    addCompare(node)
  }
})
