// Opens the first example workflow when the page's address asks for it (?uniforget=play), as `run.py comfyui` does.

import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'

const PLAY = '1 Play with forgetting'
const PATIENCE = 60_000

/** True once the page has put up the workflow that it starts with, which would come over ours. */
async function ready() {
  for (const end = Date.now() + PATIENCE; Date.now() < end; ) {
    if (app.graph && app.extensionManager?.workflow?.activeWorkflow) return true
    await new Promise((done) => setTimeout(done, 100))
  }
  return false
}

async function open() {
  const query = new URLSearchParams(window.location.search)
  if (query.get('uniforget') !== 'play') return
  const pack = new URL(import.meta.url).pathname.split('/extensions/')[1].split('/')[0]
  const answer = await api.fetchApi(`/workflow_templates/${pack}/${encodeURIComponent(PLAY)}.json`)
  if (!answer.ok || !(await ready())) return
  await app.loadGraphData(await answer.json(), true, true, PLAY)
  // a reload keeps what somebody made of it
  query.delete('uniforget')
  window.history.replaceState(null, '', `${window.location.pathname}${query.size ? `?${query}` : ''}${window.location.hash}`)
}

app.registerExtension({
  name: 'UniForget.Open',
  setup: () => void open()
})
