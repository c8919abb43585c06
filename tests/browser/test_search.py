"""What an artist types into ComfyUI's node search finds our nodes."""

import pytest

BOX = ".comfy-vue-node-search-container"
# word -> the node that has to be among those that are found
FOUND = {
    "forget": "Learn Memorization Mask",
    "uniforget": "Apply Memorization Mask",
    "memorization": "Apply Memorization Mask",
    "copyright": "Own-Picture Check (Copyright)",
    "report": "Memorization Report (Copyright)",
    "prune": "Compact Model (Prune)",
    "unlearn": "Learn Memorization Mask",
}


def search(page, word, wanted):
    """Titles of what the search offers for `word`, best first, once `wanted` is among them or ten seconds have passed."""
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    box = page.locator(f"{BOX} input").first
    box.wait_for()
    box.fill("")
    box.press_sequentially(word, delay=20)
    for _ in range(20):  # a slow machine lists the nodes late
        page.wait_for_timeout(500)
        found = page.locator(f"{BOX} [role=option]").all_inner_texts()
        found = [text.splitlines()[0].replace("\xa0", " ").strip() for text in found if text.strip()]
        if wanted in found:
            break
    return found


@pytest.mark.parametrize("word", FOUND)
def test_a_word_finds_the_node(editor, word):
    try:
        found = search(editor.page, word, FOUND[word])
        editor.shot(word)
        assert FOUND[word] in found[:20], found
    finally:
        editor.page.keyboard.press("Escape")
        editor.page.locator(BOX).wait_for(state="hidden")
