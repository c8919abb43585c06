"""What the nodes say in other languages: complete, translated, and readable by ComfyUI's page."""

import json
import re

import pytest

from launcher.locales import ENGLISH, FOLDER, english, flat, read

LANGUAGES = sorted(path.name for path in FOLDER.iterdir())
OTHERS = [language for language in LANGUAGES if language != ENGLISH]
OWN_SCRIPT = {"ja": r"[\u3040-\u30ff]", "zh": r"[\u4e00-\u9fff]"}
# Special to the page's translator (vue-i18n): placeholders, links and plurals. No text of ours has any.
SPECIAL = re.compile(r"[{}|@]")
# What has to be the same in every language: numbers, paths and file endings, names in code, and what stands in single quotes.
KEPT = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)|\b[\w.]+(?:[/_][\w.]+)+/?|(?<=\s)\.\w{3,}\b|(?<!\w)'[^']+'(?!\w)")
FEW = 3


def kept(text):
    return [what.rstrip(".,") for what in KEPT.findall(text)]


@pytest.fixture(scope="module")
def texts():
    return {language: flat(read(language)) for language in LANGUAGES}


def test_the_languages_are_those_that_were_promised():
    assert LANGUAGES == ["de", "en", "ja", "zh"]


def test_english_is_what_the_nodes_say(object_info):
    assert read(ENGLISH) == english(object_info), "run: python -m launcher.locales, then translate what changed"


@pytest.mark.parametrize("language", OTHERS)
def test_nothing_is_missing_or_left_over(texts, language):
    missing, over = texts[ENGLISH].keys() - texts[language].keys(), texts[language].keys() - texts[ENGLISH].keys()
    assert not missing and not over, f"missing: {sorted(missing)}; left over: {sorted(over)}"


@pytest.mark.parametrize("language", OTHERS)
def test_everything_is_translated(texts, language):
    copied = [key for key, text in texts[language].items() if text == texts[ENGLISH][key] and len(text.split()) > FEW]
    assert not copied, f"still English: {copied}"
    own = OWN_SCRIPT.get(language)
    foreign = [
        k for k, text in texts[language].items() if own and len(texts[ENGLISH][k].split()) > FEW and not re.search(own, text)
    ]
    assert not foreign, f"not in the script of {language}: {foreign}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_can_read_every_text(texts, language):
    bad = {key: text for key, text in texts[language].items() if SPECIAL.search(text) or text != text.strip() or not text}
    assert not bad


@pytest.mark.parametrize("language", OTHERS)
def test_numbers_paths_and_quoted_settings_are_kept(texts, language):
    lost = {}
    for key, text in texts[ENGLISH].items():
        if not key.endswith(".name") and (gone := [what for what in kept(text) if what not in texts[language][key]]):
            lost[key] = gone
    assert not lost


def test_the_check_of_what_is_kept_sees_something():
    found = kept("Saved as .safetensors in models/uniforget/ (my_mask_00001): 0.3 is 30 %, 'ffn + norm', the model's SD1.5.")
    assert found == [".safetensors", "models/uniforget/", "my_mask_00001", "0.3", "30", "'ffn + norm'"]


@pytest.mark.parametrize("language", OTHERS)
def test_the_same_english_is_the_same_translation(texts, language):
    """Of sentences: a setting called alike is explained alike."""
    said = {}
    for key, text in texts[ENGLISH].items():
        if len(text.split()) > FEW:
            said.setdefault(text, set()).add(texts[language][key])
    assert not {text: found for text, found in said.items() if len(found) > 1}


def said_by_panels():
    """English texts of the panels, as web/*.js gives them to its translator."""
    return {
        text.replace("\\'", "'")
        for file in (FOLDER.parent / "web").glob("*.js")
        for text in re.findall(r"\b(?:t|mark)\(\s*'((?:[^'\\]|\\.)*)'", file.read_text(encoding="utf-8"))
    }


@pytest.mark.parametrize("language", OTHERS)
def test_what_panels_say_is_translated(language):
    texts = json.loads((FOLDER / language / "main.json").read_text(encoding="utf-8"))["uniforget"]
    said = said_by_panels()
    assert len(said) > 100
    assert texts.keys() == said, f"missing: {sorted(said - texts.keys())}; left over: {sorted(texts.keys() - said)}"
    assert not [text for text, other in texts.items() if len(text.split()) > FEW and (text == other or not other)]
    values = {text: sorted(re.findall(r"%\d", text)) for text in texts}
    assert not [text for text, other in texts.items() if sorted(re.findall(r"%\d", other)) != values[text]]


def test_comfyui_serves_them(client):
    served = client.get("/i18n")
    for language in LANGUAGES:
        ours = {name: node for name, node in served[language]["nodeDefs"].items() if name.startswith("UniForget")}
        assert ours == read(language)
        assert language == ENGLISH or len(served[language]["uniforget"]) > 100


def test_files_are_written_as_people_edit_them():
    for language in LANGUAGES:
        file = FOLDER / language / "nodeDefs.json"
        assert file.read_text(encoding="utf-8") == json.dumps(read(language), indent=2, ensure_ascii=False) + "\n"
