// Shows the two pictures of a frame in turn.

const PERIOD = 600 // ms per picture: below three changes a second, which can harm people

export class Flicker {
  /** @param {HTMLElement} frame gets data-shown="0" or "1" */
  constructor(frame) {
    this.frame = frame
    this.wanted = false
    this.held = false
    this.timer = null
    this.shown = 0
  }

  /** Starts from the first picture. People who asked for less motion start it themselves, with the space bar. */
  start() {
    this.show(0)
    this.run(!matchMedia('(prefers-reduced-motion: reduce)').matches)
  }

  stop() {
    this.run(false)
    delete this.frame.dataset.shown
  }

  toggle() {
    this.run(!this.wanted)
  }

  stopAt(shown) {
    this.run(false)
    this.show(shown)
  }

  /** Begins again after the frame has been out of the page, where nothing may go on ticking. */
  resume() {
    if (this.wanted && this.timer === null) this.run(true)
  }

  run(wanted) {
    this.wanted = wanted
    clearInterval(this.timer)
    this.timer = wanted ? setInterval(() => this.tick(), PERIOD) : null
  }

  tick() {
    if (!this.frame.isConnected) {
      clearInterval(this.timer)
      this.timer = null
    } else if (!this.held) this.show(1 - this.shown)
  }

  show(shown) {
    this.shown = shown
    this.frame.dataset.shown = String(shown)
  }
}
