"""Prompt Check's table in a real page: what is shown, how it sorts, what a workflow may hold."""

import pytest

DEMO, CHECK = 1, 2
PROMPTS = ["cool photo of whiskers", "soft cat top left on blue", "flat frog and cactus on grey checks", "photo of coffee"]


def node(ident, kind, values, inputs, outputs, pos, size, **extra):
    made = {"id": ident, "type": kind, "pos": pos, "size": size, "flags": {}, "order": ident, "mode": 0, "properties": {}}
    made |= {"widgets_values": values, **extra}
    made["inputs"] = [{"name": n, "type": t, "link": link} for n, t, link in inputs]
    made["outputs"] = [{"name": n, "type": n, "links": links} for n, links in outputs]
    return made


def workflow(prompts=PROMPTS, **extra):
    """The demo model into Prompt Check."""
    wired = [("model", "MODEL", 1), ("clip", "CLIP", 2), ("mask", "UNIFORGET_MASK", None)]
    values = [1.0, "\n".join(prompts), 2, 24, 96, 96, 0, "fixed"]
    nodes = [
        node(
            DEMO,
            "UniForgetDemoModel",
            ["bundled demo model"],
            [],
            [("MODEL", [1]), ("CLIP", [2]), ("VAE", [])],
            [0, 0],
            [300, 120],
        ),
        node(CHECK, "UniForgetPromptCheck", values, wired, [("STRING", [])], [400, 0], [660, 720], **extra),
    ]
    links = [[1, DEMO, 0, CHECK, 0, "MODEL"], [2, DEMO, 1, CHECK, 1, "CLIP"]]
    return {"last_node_id": 2, "last_link_id": 2, "nodes": nodes, "links": links, "groups": [], "version": 0.4}


class Table:
    def __init__(self, editor):
        self.editor = editor
        editor.page.evaluate(
            "(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'table').element.dataset.testNode = id }", CHECK
        )
        self.root = editor.page.locator(f".uniforget-prompts[data-test-node='{CHECK}']")

    def column(self, title):
        titles = self.root.locator("th").all_inner_texts()
        at = titles.index(title)
        return [row.locator("td").nth(at).inner_text() for row in self.root.locator("tbody tr").all()]

    def sort(self, title):
        self.root.get_by_role("button", name=title, exact=True).click()


@pytest.fixture
def loaded(editor):
    editor.load(workflow(), show=CHECK)
    return editor


def test_an_empty_table_says_what_to_do(loaded):
    table = Table(loaded)
    assert "Run the workflow" in table.root.inner_text()
    loaded.shot()


def test_a_run_fills_the_table_and_a_click_sorts_it(loaded):
    loaded.run()
    table = Table(loaded)
    table.root.locator("tbody tr").first.wait_for()
    loaded.shot("by_score")
    scores = [float(s.removesuffix("\u00d7")) for s in table.column("score")]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4
    assert set(table.column("prompt")) == set(PROMPTS)
    assert all(a.endswith(" %") for a in table.column("agreement"))
    assert "after" not in table.root.locator("th").all_inner_texts()
    before = loaded.place(CHECK)
    table.sort("prompt")
    assert table.column("prompt") == sorted(PROMPTS)
    table.sort("prompt")
    assert table.column("prompt") == sorted(PROMPTS, reverse=True)
    assert table.root.locator("th[aria-sort=descending]").inner_text() == "prompt"
    assert loaded.place(CHECK) == before, "a click on the table moved the node or the view"
    loaded.page.keyboard.press("Enter")
    assert table.column("prompt") == sorted(PROMPTS), "the header keeps the focus"
    loaded.shot("by_prompt")
    rows, saved = table.column("score"), loaded.saved()
    loaded.open()
    loaded.load(saved, show=CHECK)
    again = Table(loaded)
    assert again.column("prompt") == sorted(PROMPTS) and again.column("score") == rows


def test_what_a_strangers_workflow_holds_is_cleaned(editor):
    bad = {
        "rows": [
            {"prompt": "<img src=x onerror=window.hacked=1>", "score": "9", "pull": 1e999, "percentile": 7, "verdict": "<b>"},
            {"prompt": 5},
            None,
            *(
                {"prompt": f"p{i}", "score": i, "verdict": "memorized", "score_after": 0.5, "verdict_after": "usual"}
                for i in range(600)
            ),
        ],
        "by": "__proto__",
        "down": "x",
    }
    editor.load(workflow(properties={"uniforget_prompts": bad}), show=CHECK)
    table = Table(editor)
    assert table.root.locator("tbody tr").count() == 498
    assert table.column("prompt")[0] == "p496" and table.column("verdict")[0] == "likely memorized"
    assert table.column("after")[0] == "looks usual"
    assert table.column("prompt")[-1].startswith("<img"), "text, and what has no score comes last"
    assert editor.page.evaluate("window.hacked") is None and table.root.locator("img").count() == 0
    editor.shot()
    state = editor.page.evaluate("(id) => app.graph.getNodeById(id).properties.uniforget_prompts", CHECK)
    assert state["by"] == "score" and state["down"] is True and state["rows"][0]["pull"] is None
