// What our node widgets need of ComfyUI's page, the same for the classic and the Nodes 2.0 renderer.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'

/** Where the browser finds a saved picture. */
export const address = ({ filename, subfolder, type }) => api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)

/** Calls `after` when the node's own `name` has been called. */
export function chain(node, name, after) {
  const before = node[name]
  node[name] = function (...values) {
    const result = before?.apply(this, values)
    after(...values)
    return result
  }
}

/** Lets ComfyUI notice that the workflow changed, so that it can be undone and a reload of the page finds it as it is now. */
export function noticeChange() {
  app.graph?.setDirtyCanvas?.(true, true)
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
  // the second is its name in older frontends
  if (tracker?.captureCanvasState) tracker.captureCanvasState()
  else tracker?.checkState?.()
}

export const isNodes2 = (element) => element.closest('[data-node-id]') !== null

/** The node's own widget called `name`. */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

/** Whether another node gives the value of the input or widget called `name`. */
export const isLinked = (node, name) =>
  (node.inputs ?? []).some((input, slot) => (input.widget?.name ?? input.name) === name && node.isInputConnected(slot))

/** Whether a node is one of our classes `kinds`. */
export const isOne = (node, ...kinds) => kinds.includes(node.comfyClass) || kinds.includes(node.constructor?.comfyClass)

/** Sets a widget as a user would, so that both renderers draw it anew; `done`: no more of the same change follows. */
export function setWidget(node, widget, value, done = true) {
  widget.value = value
  widget.callback?.(value, app.canvas, node, app.canvas?.graph_mouse, null)
  if (done) noticeChange()
}

/** Keeps the boxes for text of a node at `height`: what room there is goes to its panel. */
export function keepTextLow(node, height) {
  for (const { options, element } of node.widgets ?? []) if (element?.tagName === 'TEXTAREA') options.getMaxHeight = () => height
}

/**
 * Puts `root` into a node as a widget of at least `height`, which holds no value of the workflow; the node becomes at least `smallest`.
 * With `fixed` it keeps that height in a taller node.
 */
export function addPanel(node, name, root, height, smallest, fixed = false) {
  const widget = node.addDOMWidget(name, `UNIFORGET_${name.toUpperCase()}`, root, {
    serialize: false,
    hideOnZoom: false,
    // the side panel would take our element, and leave the widget with the panel's width
    hideInPanel: true,
    getMinHeight: () => height,
    ...(fixed && { getMaxHeight: () => height })
  })
  widget.serialize = false
  if (smallest) node.setSize?.([Math.max(node.size[0], smallest[0]), Math.max(node.size[1], smallest[1])])
  return widget
}

/** A message in the corner of the page; `severity` is "success", "info" or "error". */
export function say(severity, summary, detail = '') {
  const toast = app.extensionManager?.toast
  if (toast) toast.add({ severity, summary, detail, life: severity === 'error' ? 12000 : 6000 })
  else window.alert([summary, detail].filter(Boolean).join('\n'))
}

/** Gives an event to the canvas, over which the classic renderer lays widgets; Nodes 2.0 does that by itself. */
function pass(root, event) {
  if (isNodes2(root)) return
  event.preventDefault()
  app.canvas?.canvas?.dispatchEvent(new event.constructor(event.type, event))
}

/** Scrolls the nearest `area` of class `ufh-scrolls` by a wheel event; whether it did. */
function scroll({ target, ctrlKey, metaKey, deltaX, deltaY, deltaMode }) {
  const area = target.closest('.ufh-scrolls')
  if (!area || ctrlKey || metaKey) return false
  const lines = deltaMode === 1 ? 16 : 1
  const [left, top] = [area.scrollLeft, area.scrollTop]
  area.scrollBy({ left: deltaX * lines, top: deltaY * lines, behavior: 'instant' })
  return area.scrollLeft !== left || area.scrollTop !== top
}

const wheels = new WeakMap()

// Above the page's own listeners: since frontend 1.41 Nodes 2.0 gives the wheel to its canvas before a widget hears of it.
window.addEventListener(
  'wheel',
  (event) => {
    const root = event.target.closest?.('.ufh-panel')
    const use = root && wheels.get(root)
    if (!use) return
    const used = use(event) || scroll(event)
    if (!used && isNodes2(root)) return
    event.preventDefault()
    event.stopPropagation()
    if (!used) pass(root, event)
  },
  { capture: true, passive: false }
)

/**
 * Lets the widget `root` have the wheels for which `use(event)` is true or that scroll a child of class `ufh-scrolls`. The other ones, and
 * the middle button, go to the canvas.
 */
export function shareWheel(root, use = () => false) {
  root.classList.add('ufh-panel')
  wheels.set(root, use)
  root.addEventListener('pointerdown', (event) => event.button === 1 && pass(root, event))
}

/** `shareWheel`, and neither drags the node nor pans the view while somebody uses the widget `root`. */
export function shareWithCanvas(root) {
  shareWheel(root)
  for (const type of ['pointerdown', 'pointermove', 'pointerup', 'dblclick']) {
    root.addEventListener(type, (event) => {
      const hosts = type === 'pointermove' ? !(event.buttons & 1) : event.button !== 0
      if (!hosts) event.stopPropagation()
    })
  }
}
