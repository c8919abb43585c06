// Puts the sortable table into Prompt Check: one DOM widget for the classic and the Nodes 2.0 renderer.

import { app } from '../../scripts/app.js'
import { afterRun, clean } from './promptcheck_state.js'
import { PromptTable } from './promptcheck_view.js'

const NODE = 'UniForgetPromptCheck'
const PROPERTY = 'uniforget_prompts'
const SMALLEST = [560, 640]

function loadStyle() {
  const href = new URL('./promptcheck.css', import.meta.url).href
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return
  const link = document.createElement('link')
  link.rel = 'stylesheet'
  link.href = href
  document.head.append(link)
}

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

/** In the classic renderer the widget lies over the canvas: the wheel scrolls the table where it can, and zooms the canvas elsewhere. */
function passToCanvas(view) {
  const classic = () => view.root.closest('[data-node-id]') === null
  const pass = (event) => {
    event.preventDefault()
    app.canvas?.canvas?.dispatchEvent(new event.constructor(event.type, event))
  }
  view.root.addEventListener(
    'wheel',
    (event) => {
      const { scroller } = view
      const scrolls = scroller.scrollHeight > scroller.clientHeight && !event.ctrlKey && !event.metaKey
      if (scrolls) event.stopPropagation()
      else if (classic()) pass(event)
    },
    { passive: false }
  )
  view.root.addEventListener('pointerdown', (event) => event.button === 1 && classic() && pass(event))
}

function addTable(node) {
  const view = new PromptTable((change) => {
    node.properties[PROPERTY] = { ...clean(node.properties[PROPERTY]), ...change }
    noticeChange()
  })
  const show = (state) => {
    node.properties[PROPERTY] = state
    view.show(state)
  }
  passToCanvas(view)
  const widget = node.addDOMWidget('table', 'UNIFORGET_PROMPTS', view.root, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => 220
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
  name: 'UniForget.PromptCheck',
  setup: loadStyle,
  nodeCreated(node) {
    if (node.comfyClass !== NODE && node.constructor?.comfyClass !== NODE) return
    node.properties ??= {}
    addTable(node)
  }
})
