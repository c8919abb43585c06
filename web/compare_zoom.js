// Which part of the pictures is seen: `scale` times enlarged, with the place (x, y) of the picture, in [0, 1], in the middle.

export const WHOLE = Object.freeze({ scale: 1, x: 0.5, y: 0.5 })
export const LARGEST = 32

const between = (value, low, high) => Math.min(high, Math.max(low, value))

/** The nearest view that leaves no empty margin. */
export function held({ scale, x, y }) {
  const s = between(scale, 1, LARGEST)
  const half = 0.5 / s
  return { scale: s, x: between(x, half, 1 - half), y: between(y, half, 1 - half) }
}

/** Enlarged `factor` times; what lies under the place (px, py) of the frame, in [0, 1], stays there. */
export function zoomedAt(view, factor, px, py) {
  const scale = between(view.scale * factor, 1, LARGEST)
  const shift = 1 / view.scale - 1 / scale
  return held({ scale, x: view.x + (px - 0.5) * shift, y: view.y + (py - 0.5) * shift })
}

/** The picture dragged by (dx, dy), as parts of the frame. */
export const panned = (view, dx, dy) => held({ ...view, x: view.x - dx / view.scale, y: view.y - dy / view.scale })

/** As a CSS transform of something as large as the frame whose origin is its corner. */
export function transform({ scale, x, y }) {
  if (scale === 1) return 'none'
  const percent = (at) => `${((0.5 - at * scale) * 100).toFixed(4)}%`
  return `translate(${percent(x)}, ${percent(y)}) scale(${scale.toFixed(5)})`
}
