// Mouse, pen, fingers and keys of a CompareView.

import { MODES } from './compare_state.js'

const STEP = 0.01
const BIG_STEP = 0.1
const ZOOM_STEP = 1.25
const WHEEL_MOST = 30

/** Lets one finger or the mouse move the slider or the pictures, and two fingers zoom. */
export function listenToPointers(view) {
  const { frame } = view
  const down = new Map()
  let doing = null // 'slide', 'pan' or 'pinch'
  let box = null
  let started = 0

  const middle = () => {
    const [p, q] = [...down.values()]
    return { x: (p.x + q.x) / 2, y: (p.y + q.y) / 2, apart: Math.max(1, Math.hypot(p.x - q.x, p.y - q.y)) }
  }

  frame.addEventListener('pointerdown', (event) => {
    if (event.button !== 0 || down.size === 2 || down.has(event.pointerId)) return
    event.preventDefault()
    frame.setPointerCapture(event.pointerId)
    frame.focus({ preventScroll: true })
    down.set(event.pointerId, { x: event.clientX, y: event.clientY })
    // both ends are in screen pixels, so the canvas' zoom does not matter
    box = view.paneAt(event.clientX, event.clientY)
    view.hold(true)
    if (down.size === 2) {
      if (doing === 'slide') view.setPosition(started, false)
      doing = 'pinch'
      return
    }
    doing = view.slides(event.target) ? 'slide' : 'pan'
    started = view.state.position
    frame.classList.toggle('ufc-panning', doing === 'pan')
    if (doing === 'slide') view.slideTo(event, box)
  })

  frame.addEventListener('pointermove', (event) => {
    const last = down.get(event.pointerId)
    if (!last) return
    const before = doing === 'pinch' ? middle() : last
    down.set(event.pointerId, { x: event.clientX, y: event.clientY })
    if (doing === 'slide') return view.slideTo(event, box)
    const now = doing === 'pinch' ? middle() : event
    const [x, y] = doing === 'pinch' ? [now.x, now.y] : [now.clientX, now.clientY]
    view.pan((x - before.x) / box.width, (y - before.y) / box.height, false)
    if (doing === 'pinch') view.zoomBy(now.apart / before.apart, (x - box.left) / box.width, (y - box.top) / box.height, false)
  })

  const end = (event) => {
    if (!down.delete(event.pointerId)) return
    // the finger that stays must not make the slider jump
    if (down.size) doing = 'pan'
    else {
      doing = null
      frame.classList.remove('ufc-panning')
      view.hold(false)
      view.keep()
    }
  }
  frame.addEventListener('pointerup', end)
  frame.addEventListener('pointercancel', end)
  frame.addEventListener('lostpointercapture', end)
  frame.addEventListener('dblclick', () => (view.state.zoom.scale > 1 ? view.unzoom() : view.setPosition(0.5, true)))
}

/** Zooms by a wheel event if it is meant for the pictures; whether it was. */
export function wheel(view, event) {
  const meant = event.ctrlKey || event.metaKey || view.state.wheel
  if (!meant || !view.frame.contains(event.target)) return false
  const box = view.paneAt(event.clientX, event.clientY)
  const lines = event.deltaMode === 1 ? 16 : 1
  const by = Math.min(WHEEL_MOST, Math.max(-WHEEL_MOST, event.deltaY * lines))
  view.zoomBy(Math.exp(-by / 100), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, true)
  return true
}

/** What a key does, or undefined. */
function action(view, { key, shiftKey }) {
  const { state } = view
  const step = shiftKey ? BIG_STEP : STEP
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
  if (key in arrows) {
    const [x, y] = arrows[key]
    if (state.mode === 'horizontal') return () => view.setPosition(state.position + step * (x || -y), true)
    if (state.mode === 'vertical') return () => view.setPosition(state.position + step * (x || y), true)
    if (state.mode === 'flicker') return () => view.flicker.stopAt(x + y > 0 ? 1 : 0)
    return () => view.pan(-x * BIG_STEP, -y * BIG_STEP, true)
  }
  return {
    Home: () => view.setPosition(0, true),
    End: () => view.setPosition(1, true),
    PageUp: () => view.go(-1),
    ',': () => view.go(-1),
    PageDown: () => view.go(1),
    '.': () => view.go(1),
    '+': () => view.zoomBy(ZOOM_STEP),
    '=': () => view.zoomBy(ZOOM_STEP),
    '-': () => view.zoomBy(1 / ZOOM_STEP),
    0: () => view.unzoom(),
    ' ': state.mode === 'flicker' ? () => view.flicker.toggle() : undefined,
    ...Object.fromEntries(MODES.map((mode, i) => [i + 1, () => view.setMode(mode)]))
  }[key]
}

/** Lets the keyboard do all that the mouse does, while the picture has the focus. */
export function listenToKeys(view) {
  view.frame.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const act = action(view, event)
    if (!act) return
    act()
    event.preventDefault()
    event.stopPropagation()
  })
}
