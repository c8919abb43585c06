// New nodes that compare pictures keep their seed from run to run: with another seed there is nothing to compare.

import { app } from '../../scripts/app.js'
import { isOne } from './host.js'

const NODES = ['UniForgetPreview', 'UniForgetSweep', 'UniForgetVariety']

app.registerExtension({
  name: 'UniForget.Seed',
  // a saved workflow brings its own value afterwards
  nodeCreated(node) {
    if (!isOne(node, ...NODES)) return
    const control = node.widgets?.find((widget) => widget.name === 'control_after_generate')
    if (control) control.value = 'fixed'
  }
})
