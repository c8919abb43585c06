// Shows the whole of an example workflow when it is opened. The page fits workflows too, but before Nodes 2.0 has laid out its nodes; and
// frontend 1.32, whose view moves meanwhile, then takes the places of nodes on the screen for those in the workflow.

import { app } from '../../scripts/app.js'

const MARK = 'uniforget_fit'
const STILL = 600 // ms without a change: the page has laid out everything
const PATIENCE = 8000
const STEP = 100
// Pixels of the window that the page's bars cover.
const EDGE = { left: 70, top: 135, right: 20, bottom: 50 }

const wait = (time) => new Promise((done) => setTimeout(done, time))
const places = () => new Map(app.graph.nodes.map((node) => [node, [...node.pos]]))
const layout = () => JSON.stringify(app.graph.nodes.map(({ pos, size }) => [...pos, ...size]))

function fit() {
  const title = globalThis.LiteGraph?.NODE_TITLE_HEIGHT ?? 30
  const boxes = [
    ...app.graph.nodes.map(({ pos, size }) => [pos[0], pos[1] - title, size[0], size[1] + title]),
    ...(app.graph.groups ?? []).map(({ pos, size }) => [...pos, ...size])
  ]
  if (!boxes.length) return
  const [x, y] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])))
  const [width, height] = [0, 1].map((i) => Math.max(...boxes.map((box) => box[i] + box[i + 2])) - [x, y][i])
  const room = app.canvas.canvas.getBoundingClientRect()
  const [across, down] = [room.width - EDGE.left - EDGE.right, room.height - EDGE.top - EDGE.bottom]
  const { ds } = app.canvas
  ds.scale = Math.min(1, across / width, down / height)
  ds.offset[0] = (EDGE.left + across / 2) / ds.scale - x - width / 2
  ds.offset[1] = (EDGE.top + down / 2) / ds.scale - y - height / 2
  app.canvas.setDirty(true, true)
}

function putBack(wanted) {
  const moved = [...wanted].filter(([node, [x, y]]) => Math.abs(node.pos[0] - x) + Math.abs(node.pos[1] - y) > 1)
  for (const [node, pos] of moved) node.pos = pos
  // frontend 1.32 does not tell Nodes 2.0 of that
  const layout = app.canvas.initLayoutMutations?.()
  if (layout) app.canvas.applyNodePositionUpdates?.(moved.map(([node, [x, y]]) => ({ node, newPos: { x, y } })), layout)
}

async function settle(graph, wanted) {
  let hands = false
  const stop = () => (hands = true)
  for (const type of ['pointerdown', 'wheel', 'keydown']) window.addEventListener(type, stop, { capture: true, once: true })
  let seen = layout()
  for (let still = 0, passed = 0; still < STILL && passed < PATIENCE; passed += STEP) {
    await wait(STEP)
    if (app.graph !== graph) return
    if (hands) break
    const now = layout()
    still = now === seen ? still + STEP : 0
    seen = now
  }
  putBack(wanted)
  if (!hands) fit()
  graph.uniforgetFitted = true
}

app.registerExtension({
  name: 'UniForget.Fit',
  afterConfigureGraph() {
    const { graph } = app
    if (!graph?.extra?.[MARK]) return
    graph.uniforgetFitted = false
    delete graph.extra[MARK] // a copy that somebody saves opens as they left it
    void settle(graph, places())
  }
})
