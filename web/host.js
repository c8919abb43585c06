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
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.()
}

export const isNodes2 = (element) => element.closest('[data-node-id]') !== null

/**
 * Pointer events inside `root` stay there, so that nobody drags the node with them; wheels and the middle button go down to the canvas,
 * over which the classic renderer lays widgets. A wheel that scrolls a child of class `ufh-scrolls` stays as well.
 */
export function keepPointers(root) {
  const pass = (event) => {
    if (isNodes2(root)) return
    event.preventDefault()
    app.canvas?.canvas?.dispatchEvent(new event.constructor(event.type, event))
  }
  root.addEventListener('wheel', (event) => event.target.closest('.ufh-scrolls') || pass(event), { passive: false })
  root.addEventListener('pointerdown', (event) => event.button === 1 && pass(event))
  for (const type of ['pointerdown', 'pointermove', 'pointerup', 'dblclick']) {
    root.addEventListener(type, (event) => {
      const hosts = type === 'pointermove' ? !(event.buttons & 1) : event.button !== 0
      if (!hosts) event.stopPropagation()
    })
  }
}

/** The node's own widget called `name`. */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

/** Sets a widget as a user would; `done`: no more of the same change follows. */
export function setValue(node, widget, value, done = true) {
  widget.value = value
  widget.callback?.(value, app.canvas, node)
  if (done) noticeChange()
}

/** Whether a node is one of our classes `names`. */
export const isOne = (node, names) => names.includes(node.comfyClass) || names.includes(node.constructor?.comfyClass)

export const isNode = (node, kind) => node.comfyClass === kind || node.constructor?.comfyClass === kind

/** A message in the corner of the page; `severity` is "success", "info" or "error". */
export function say(severity, summary, detail = '') {
  const toast = app.extensionManager?.toast
  if (toast) toast.add({ severity, summary, detail, life: severity === 'error' ? 12000 : 6000 })
  else window.alert([summary, detail].filter(Boolean).join('\n'))
}

/** Sets a widget as a user would, so that both renderers draw it anew. */
export function setWidget(node, widget, value) {
  widget.value = value
  widget.callback?.(value, app.canvas, node, app.canvas?.graph_mouse, null)
}

/** Whether a wheel event would scroll `area`. */
function scrolls(area, { deltaX, deltaY }) {
  const room = (delta, at, most) => (delta < 0 ? at > 0 : delta > 0 && at < most - 1)
  return (
    room(deltaY, area.scrollTop, area.scrollHeight - area.clientHeight) ||
    room(deltaX, area.scrollLeft, area.scrollWidth - area.clientWidth)
  )
}

/**
 * Neither drags the node nor pans or zooms the view while somebody uses the widget `root`; what the widget and its scrolling
 * `area` do not use goes to the canvas, over which the classic renderer's widgets lie.
 */
export function shareWithCanvas(root, area) {
  for (const type of ['pointerdown', 'pointermove', 'pointerup', 'dblclick']) {
    root.addEventListener(type, (event) => {
      const hosts = type === 'pointermove' ? !(event.buttons & 1) : event.button !== 0
      if (!hosts) event.stopPropagation()
    })
  }
  const pass = (event) => {
    if (isNodes2(root)) return
    event.preventDefault()
    app.canvas?.canvas?.dispatchEvent(new event.constructor(event.type, event))
  }
  root.addEventListener('pointerdown', (event) => event.button === 1 && pass(event))
  root.addEventListener(
    'wheel',
    (event) => {
      if (!event.ctrlKey && !event.metaKey && scrolls(area, event)) event.stopPropagation()
      else pass(event)
    },
    { passive: false }
  )
}
