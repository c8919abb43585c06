// Puts the map into Mask Map: one DOM widget for the classic and the Nodes 2.0 renderer.

import { app } from '../../scripts/app.js'
import { readBlocks, writeBlocks } from './blocks.js'
import { loadStyle } from './dom.js'
import { addPanel, chain, isLinked, isOne, noticeChange, setWidget, shareWithCanvas, widgetOf } from './host.js'
import { clean } from './maskmap_state.js'
import { MaskMapView } from './maskmap_view.js'

const NODE = 'UniForgetMaskMap'
const PROPERTY = 'uniforget_map'
const SMALLEST = [460, 420]

function addMap(node) {
  let map = null
  const blocks = widgetOf(node, 'blocks')
  const view = new MaskMapView((kept, done) => setWidget(node, blocks, writeBlocks(kept, map.blocks), done))
  const draw = () => {
    view.show(map, map && readBlocks(String(blocks.value ?? ''), map.blocks), isLinked(node, 'blocks'))
  }
  const take = (value) => {
    map = clean(value)
    draw()
  }
  shareWithCanvas(view.root)
  addPanel(node, 'map', view.root, 200, SMALLEST)
  chain(blocks, 'callback', draw)
  take(node.properties[PROPERTY])
  chain(node, 'onConfigure', () => take(node.properties[PROPERTY]))
  chain(node, 'onConnectionsChange', draw)
  chain(node, 'onExecuted', (output) => {
    const found = clean(output?.uniforget_map?.[0])
    if (!found) return
    node.properties[PROPERTY] = found
    take(found)
    noticeChange()
  })
}

app.registerExtension({
  name: 'UniForget.MaskMap',
  setup: () => loadStyle('maskmap.css'),
  nodeCreated(node) {
    if (!isOne(node, NODE)) return
    node.properties ??= {}
    addMap(node)
  }
})
