"""Find Memorized Prompts on real ComfyUI, with a model that really memorized."""

import pytest
from uniforget_pack.nodes.find import FindMemorized
from uniforget_pack.testbed import concepts, evaluate
from uniforget_pack.uniforget.errors import PromptFileError, SettingError
from uniforget_pack.uniforget.prompts import parse_prompts

KNOWN = [item.caption for item in concepts.MEMORIZED if item.group == "scene"][:6]
FREE = ["soft lion and car on grey", "soft cat and frog on pink dots"]


def run(demo, pool, **changes):
    values = {
        "prompts": "\n".join(evaluate.learning_prompts(24)),
        "sampling_steps": 4,
        "batch": 32,
        "width": 96,
        "height": 96,
        "seed": 0,
    }
    out = FindMemorized.execute(demo.model, demo.clip, pool=pool, **values | changes)
    return out.args[0], out.ui.as_dict()["text"][0]


def test_memorized_prompts_are_found_and_come_with_answers(demo):
    text, said = run(demo, "\n".join([*KNOWN, *FREE]))
    lines = parse_prompts(text)
    assert lines[:24] == evaluate.learning_prompts(24)
    found = lines[24:]
    assert len(set(KNOWN) & set(found)) >= 4 and not set(FREE) & set(found) and all(prompt.answers for prompt in found)
    assert "of 8 prompts draw the same picture" in said and found[0] in said


def test_an_empty_or_broken_list_is_refused(demo):
    with pytest.raises(SettingError, match="at least one prompt in 'pool'"):
        run(demo, "# nothing\n")
    with pytest.raises(PromptFileError, match="line 1"):
        run(demo, '{"promt": "x"}')
