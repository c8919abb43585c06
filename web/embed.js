// Masks in workflows: Load Memorization Mask's menu embeds one, Embedded Mask shows what it holds and saves it as a file.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { loadStyle } from './dom.js'
import { EmbedView } from './embed_view.js'
import { addPanel, chain, isLinked, isOne, say, setWidget, shareWithCanvas, widgetOf } from './host.js'
import { mark, t } from './words.js'

const LOAD = 'UniForgetLoadMask'
const EMBEDDED = 'UniForgetEmbeddedMask'
const SMALLEST = [360, 230]
const BELOW = 60

/** The server's answer as an object; `{error}` whenever there is none. */
async function ask(path, body) {
  const post = { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }
  try {
    const answer = await api.fetchApi(path, body ? post : undefined)
    const found = await answer.json()
    if (answer.ok && !found.error) return found
    return { error: String(found.error ?? t('ComfyUI answered with %1.', answer.status)) }
  } catch (error) {
    return { error: t('ComfyUI does not answer (%1).', error.message) }
  }
}

/** Moves what the first output of `from` feeds to the first output of `to`. */
function takeOver(from, to) {
  for (const target of new Set(from.getOutputNodes(0) ?? [])) {
    for (const slot of target.inputs.keys()) {
      const link = target.getInputLink(slot)
      if (link?.origin_id === from.id && link.origin_slot === 0) to.connect(0, target, slot)
    }
  }
}

async function embed(node) {
  if (isLinked(node, 'mask_name')) {
    say('error', t('The mask was not embedded'), t('Another node chooses the mask. Choose it in the list, and try again.'))
    return
  }
  const found = await ask(`/uniforget/mask_text?${new URLSearchParams({ name: widgetOf(node, 'mask_name').value })}`)
  if (found.error) {
    say('error', t('The mask was not embedded'), found.error)
    return
  }
  const { graph } = node
  if (!graph) return // deleted meanwhile
  const made = window.LiteGraph.createNode(EMBEDDED)
  graph.beforeChange?.()
  graph.add(made)
  made.pos = [node.pos[0], node.pos[1] + node.size[1] + BELOW]
  takeOver(node, made)
  setWidget(made, widgetOf(made, 'mask_text'), found.text)
  graph.afterChange?.()
  app.canvas?.selectNode?.(made)
  say('success', t('The mask is in the workflow now'), t('The Load node is not needed any more: whoever opens this workflow has the mask.'))
}

async function askName() {
  const question = { title: t('Save mask as file'), message: t('Name, inside models/uniforget/:'), defaultValue: 'my_mask' }
  const dialog = app.extensionManager?.dialog
  return dialog?.prompt ? dialog.prompt(question) : window.prompt(question.message, question.defaultValue)
}

async function save(node) {
  const text = String(widgetOf(node, 'mask_text').value ?? '')
  if (!text.trim()) {
    say('error', t('Nothing was saved'), t('This node holds no mask yet.'))
    return
  }
  const name = (await askName())?.trim()
  if (!name) return
  const found = await ask('/uniforget/save_mask', { text, name })
  if (found.error) say('error', t('Nothing was saved'), found.error)
  else say('success', t('Saved as %1', found.name), t('Press R to see it in Load Memorization Mask.'))
}

function addEmbedded(node) {
  const text = widgetOf(node, 'mask_text')
  // The text itself is for machines: the panel shows what it holds, and a small part of it.
  text.hidden = true
  text.options.hidden = true
  // The classic renderer lays out hidden widgets as well.
  text.computeLayoutSize = () => ({ minHeight: 0, maxHeight: 0, minWidth: 0 })
  const view = new EmbedView(
    async (value) => {
      const found = await ask('/uniforget/inspect_mask', { text: value })
      return found.summary ?? found
    },
    (value) => setWidget(node, text, value),
    () => save(node)
  )
  shareWithCanvas(view.root)
  addPanel(node, 'embedded', view.root, 150, SMALLEST)
  const draw = () => view.show(String(text.value ?? ''))
  chain(text, 'callback', draw)
  chain(node, 'onConfigure', draw)
  draw()
}

const COMMANDS = {
  [LOAD]: { id: 'UniForget.EmbedMask', label: mark('Embed mask in workflow'), icon: 'pi pi-paperclip', act: embed },
  [EMBEDDED]: { id: 'UniForget.SaveEmbeddedMask', label: mark('Save mask as file'), icon: 'pi pi-save', act: save }
}

const commandOf = (node) => Object.entries(COMMANDS).find(([kind]) => isOne(node, kind))?.[1]

app.registerExtension({
  name: 'UniForget.Embed',
  setup: () => loadStyle('embed.css'),
  // Nodes 2.0 has no place for extensions in its menu: there they are buttons of the bar over a selected node.
  commands: Object.entries(COMMANDS).map(([kind, { id, label, icon, act }]) => ({
    id,
    label,
    icon,
    function: async () => {
      for (const node of Object.values(app.canvas?.selected_nodes ?? {})) if (isOne(node, kind)) await act(node)
    }
  })),
  getSelectionToolboxCommands: (item) => {
    const command = commandOf(item)
    return command ? [command.id] : []
  },
  getNodeMenuItems(node) {
    const command = commandOf(node)
    return command ? [{ content: t(command.label), callback: () => command.act(node) }] : []
  },
  nodeCreated(node) {
    if (isOne(node, EMBEDDED)) addEmbedded(node)
  }
})
