// Puts the clickable grid into Strength Sweep: a click sets the strength of the nodes that apply the same mask.

import { app } from '../../scripts/app.js'
import { loadStyle } from './dom.js'
import { addPanel, address, chain, isLinked, isOne, keepTextLow, noticeChange, setWidget, shareWithCanvas, widgetOf } from './host.js'
import { afterRun, clean, strengthText } from './sweep_state.js'
import { SweepView } from './sweep_view.js'
import { t } from './words.js'

const NODE = 'UniForgetSweep'
const TARGETS = ['UniForgetApply', 'UniForgetPreview']
const PROPERTY = 'uniforget_sweep'
const SMALLEST = [460, 620]
const BYPASSED = 4
const FARTHEST = 64

/** The input that a node hands on unchanged as its output of a mask, or -1. */
function passedOn(node, type) {
  const inputs = node.inputs ?? []
  if (node.type === 'Reroute') return 0
  if (isOne(node, 'UniForgetSaveMask')) return inputs.findIndex((input) => input.name === 'mask')
  return node.mode === BYPASSED ? inputs.findIndex((input) => input.type === type) : -1
}

/** Where the mask of a node comes from, as text that is equal for equal sources; null if nothing is connected. */
function source(node) {
  let at = node
  let slot = (at.inputs ?? []).findIndex((input) => input.name === 'mask')
  const type = at.inputs?.[slot]?.type
  // a loop, which only a broken workflow has, ends too
  for (let i = 0; i < FARTHEST; i++) {
    const link = slot < 0 ? null : at.getInputLink(slot)
    if (!link) return null
    const from = at.graph?.getNodeById(link.origin_id)
    slot = from ? passedOn(from, type) : -1
    if (slot < 0) return `${link.origin_id} ${link.origin_slot}`
    at = from
  }
  return null
}

const named = (node) => `${node.title || node.type} (${node.id})`

const not = (message) => ({ done: false, message })

/** Sets `strength` on all nodes that apply the mask of `sweep`: whether on any, and what to tell the user. */
function useStrength(sweep, strength, kinds) {
  const mask = source(sweep)
  if (!mask) return not(t('Connect a mask to this node first.'))
  const nodes = sweep.graph.nodes ?? sweep.graph._nodes
  const targets = nodes.filter((node) => isOne(node, ...TARGETS) && source(node) === mask)
  if (!targets.length) {
    return not(t('No node applies this mask yet: connect the same mask to Apply Memorization Mask or Preview Comparison, then click again.'))
  }
  const told = []
  let done = false
  for (const node of targets) {
    const widget = (name) => node.widgets?.find((found) => found.name === name)
    if (isLinked(node, 'strength') || !widget('strength')) {
      told.push(t('%1 takes its strength from another node: set it there.', named(node)))
      continue
    }
    setWidget(node, widget('strength'), strength, false)
    node.uniforgetSay?.(t('Strength %1 is set. Run the workflow to use it.', strengthText(strength)))
    done = true
    const others = Object.keys(kinds).filter((name) => isLinked(node, name) || widget(name)?.value !== kinds[name])
    told.push(t('Strength %1 set in %2.', strengthText(strength), named(node)))
    if (others.length) told.push(t('Not as in the grid: %1.', others.join(', ')))
  }
  return { done, message: told.join(' ') }
}

function addSweep(node) {
  const find = widgetOf(node, 'find')
  const search = () => {
    if (!find || isLinked(node, 'find')) return view.tell(t('Set "find" in the node that it is connected to.'))
    setWidget(node, find, true)
    view.tell(t('Searching: a few more columns are drawn.'))
    app.queuePrompt(0, 1)
  }
  const view = new SweepView(address, (index) => {
    const state = clean(node.properties[PROPERTY])
    const result = useStrength(node, state.strengths[index % state.strengths.length], state.kinds)
    if (result.done) {
      node.properties[PROPERTY] = { ...state, chosen: index }
      noticeChange()
    }
    return result
  }, search)
  const show = (state) => {
    node.properties[PROPERTY] = state
    view.show(clean(state))
  }
  shareWithCanvas(view.root)
  view.show(clean(node.properties[PROPERTY]))
  chain(node, 'onConfigure', () => show(clean(node.properties?.[PROPERTY])))
  chain(node, 'onExecuted', (output) => {
    const state = afterRun(clean(node.properties?.[PROPERTY]), output)
    // a run that made no pictures says nothing about those that are shown
    if (!state.cells.length) return
    show(state)
    // once searched, the next run is a plain one again
    if (state.found !== null && find && !isLinked(node, 'find')) setWidget(node, find, false, false)
    noticeChange()
  })
  addPanel(node, 'sweep', view.root, 300, SMALLEST)
  keepTextLow(node, 90)
}

app.registerExtension({
  name: 'UniForget.Sweep',
  setup: () => loadStyle('sweep.css'),
  nodeCreated(node) {
    if (!isOne(node, NODE)) return
    node.properties ??= {}
    addSweep(node)
  }
})
