// Lets our panels speak the page's language, and our nodes where ComfyUI's page forgets custom nodes' translations: until about its version 1.40, loading
// a language replaced all that had been read from locales/ before. Where the page does it by itself, nothing changes here.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { setWords } from './words.js'

const OURS = /^UniForget/

/** Node id -> texts, as in locales/<language>/nodeDefs.json. */
let texts = {}

async function load() {
  const language = app.extensionManager?.setting?.get('Comfy.Locale') ?? 'en'
  let found = {}
  if (language !== 'en') {
    try {
      const answer = await api.fetchApi('/i18n')
      if (answer.ok) found = (await answer.json())[language] ?? {}
    } catch {
      // English, then
    }
  }
  texts = found.nodeDefs ?? {}
  setWords(found.uniforget ?? {})
}

function translate(def, said) {
  def.display_name = said.display_name ?? def.display_name
  def.description = said.description ?? def.description
  for (const group of [def.input?.required, def.input?.optional]) {
    for (const [name, spec] of Object.entries(group ?? {})) {
      const tooltip = said.inputs?.[name]?.tooltip
      if (tooltip) spec[1] = { ...spec[1], tooltip }
    }
  }
  def.output_tooltips = def.output_tooltips?.map((tooltip, i) => said.outputs?.[i]?.tooltip ?? tooltip)
}

app.registerExtension({
  name: 'UniForget.Language',
  async addCustomNodeDefs(defs) {
    await load()
    for (const [id, def] of Object.entries(defs)) {
      if (OURS.test(id) && texts[id]) translate(def, texts[id])
    }
  },
  nodeCreated(node) {
    const said = texts[node.comfyClass ?? node.constructor?.comfyClass]
    if (!said) return
    for (const input of node.inputs ?? []) input.localized_name = said.inputs?.[input.name]?.name ?? input.localized_name
    for (const widget of node.widgets ?? []) widget.label = said.inputs?.[widget.name]?.name ?? widget.label
    for (const [i, output] of (node.outputs ?? []).entries()) output.localized_name = said.outputs?.[i]?.name ?? output.localized_name
  }
})
