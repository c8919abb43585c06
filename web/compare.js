// Puts the comparison into our nodes that make two sides of pictures: one DOM widget for the classic and the Nodes 2.0 renderer.

import { app } from '../../scripts/app.js'
import { wheel } from './compare_input.js'
import { afterRun, clean, pairCount } from './compare_state.js'
import { CompareView } from './compare_view.js'
import { loadStyle } from './dom.js'
import { addPanel, address, chain, isOne, noticeChange, shareWheel } from './host.js'

// A node whose ui has a_images, b_images, labels and, if it likes, notes and settings
const NODES = ['UniForgetCompare', 'UniForgetPreview']
const PROPERTY = 'uniforget_compare'
const SMALLEST = [380, 560]
const NOTICE_AFTER = 250 // ms

let noticing = null

/** `noticeChange` when a wheel or a key held down has come to rest: it reads the whole workflow. */
function noticeSoon() {
  clearTimeout(noticing)
  noticing = setTimeout(noticeChange, NOTICE_AFTER)
}

/** Uses a wheel event for the pictures or the filmstrip; whether it was meant for them. */
function useWheel(view, event) {
  if (wheel(view, event)) return true
  if (event.ctrlKey || event.metaKey || !view.thumbs.contains(event.target)) return false
  view.thumbs.scrollLeft += event.deltaX || event.deltaY
  return true
}

/** ComfyUI zooms its canvas by two fingers wherever they are, and listens above all widgets: on the pictures they are ours. */
function keepFingers() {
  for (const type of ['touchstart', 'touchmove', 'touchend', 'touchcancel']) {
    const ours = (event) => event.target.closest?.('.uniforget-compare .ufc-frame') && event.stopPropagation()
    window.addEventListener(type, ours, { capture: true, passive: true })
  }
}

function addCompare(node) {
  const view = new CompareView(
    address,
    (change, done) => {
      node.properties[PROPERTY] = Object.assign(node.properties[PROPERTY] ?? {}, change)
      if (done) noticeSoon()
    },
    () => node.title
  )
  const show = (state) => {
    node.properties[PROPERTY] = state
    view.show(clean(state))
  }
  shareWheel(view.root, (event) => useWheel(view, event))
  show(clean(node.properties[PROPERTY]))
  chain(node, 'onConfigure', () => show(clean(node.properties?.[PROPERTY])))
  chain(node, 'onExecuted', (output) => {
    const state = afterRun(clean(node.properties?.[PROPERTY]), output)
    // a run that made no pictures says nothing about those that are shown
    if (!pairCount(state.a, state.b)) return
    show(state)
    noticeSoon()
  })
  addPanel(node, 'compare', view.root, 270, SMALLEST)
}

app.registerExtension({
  name: 'UniForget.Compare',
  setup() {
    for (const name of ['compare.css', 'compare_modes.css']) loadStyle(name)
    keepFingers()
  },
  nodeCreated(node) {
    if (!isOne(node, ...NODES)) return
    node.properties ??= {}
    addCompare(node)
  }
})
