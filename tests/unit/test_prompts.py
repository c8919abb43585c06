"""The bundled neutral prompts are what they say they are, and users' own are read or refused with a message that helps."""

import itertools
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from tests.unit.forbidden import PATTERNS, findings, kinds
from uniforget import prompts as module
from uniforget.errors import PromptFileError, UniForgetError
from uniforget.prompts import neutral_prompts, parse_prompts, read_prompts

SOURCE = Path(module.__file__).with_name("neutral.txt").read_text(encoding="utf-8")
SECTIONS = [block.splitlines() for block in SOURCE.strip().split("\n\n")[1:]]  # the first block explains the file
# each occurs in a bundled prompt
STYLES = """3d, acrylic painting, anime-style, art deco, black and white, blueprint, cartoon, chalk, charcoal, cinematic, collage, comic,
concept art, crayon, cross-section, cutaway, cyanotype, digital painting, documentary, doodle, drawing, embroidered, engraving, etching,
fashion plate, felt-tip, field guide, film grain, flat illustration, flat vector, folk painting, fractal, gouache, icon, impasto, ink, isometric,
linocut, long exposure, low poly, marker, matte painting, mosaic, mural, needle-felted, oil on canvas, oil painting, oil sketch, op-art, origami,
papercut, papier-mache, pastel, pencil, pen and ink, photo, photograph, picture-book, pixel art, postcard, poster, retro, scientific plate,
screen print, seamless, sepia, spray paint, stained glass, stencil, sticker, storybook, surreal, technical drawing, tempera, tilt-shift, vector,
vintage, voxel, watercolor, watercolour, woodblock, woodcut, x-ray"""
VIEWS = """aerial, back view, backdrop, backlight, close-up, cutaway, diagonal, drone, extreme close-up, fisheye, from above, from below,
from inside, from outside, from the side, front view, frontal view, full-length, ground-level, high altitude, large empty area, looking up,
low angle, macro, minimal, negative space, on white, one-point perspective, overhead, panorama, panoramic, portrait, reflection, silhouette,
square composition, symmetrical, telephoto, top view, top-down, underwater view, vertical crop, vertical frame, wide shot, wide-angle"""
LENGTHS = {(3, 5): 0.10, (6, 10): 0.40, (11, 19): 0.20, (20, 40): 0.08}  # words -> at least this share of the prompts
# prompt -> the kind that must be found in it
PLANTS = {
    "a pair of nike shoes on a wooden floor": "brands",
    "children drinking coca-cola on a beach": "brands",
    "a castle of lego bricks on a carpet": "everyday words that are trademarks",
    "faded polaroids pinned to a corkboard": "everyday words that are trademarks",
    "spider-man swinging between tall buildings": "characters and franchises",
    "a plumber like super mario, pixel art": "characters and franchises",
    "a wheat field like van gogh painted it": "artists",
    "a picassoesque face in profile": "artists",
    "portrait of barack obama, oil on canvas": "people in public life",
    "einstein writing on a blackboard": "people in public life",
    "emma reading a book by the window": "first names",
    "a birthday cake for muhammad": "first names",
    "the mona lisa in a dusty attic": "titles",
    "a starry night above a village": "titles",
    "the eiffel tower in fog": "landmarks and places",
    "a narrow street in paris after the rain": "landmarks and places",
    "a misty forest, unreal engine, octane render": "cameras, software and sites",
    "a red barn, trending on artstation": "cameras, software and sites",
    "a white van with a logo": "words that point at known work",
    "a quiet harbour in the style of a master": "words that point at known work",
    "a gun on a kitchen table": "sexual or violent",
    "a nude figure study, charcoal": "sexual or violent",
    "portrait of Kathinka with a parrot": "capital",
    "Kathinka feeds a parrot": "capital",
    "a parrot on a perch. Kathinka feeds it": "capital",
    "a harbour at dusk by kathinka": "by",
    'a shop sign that says "open"': "character",
    "a wooden chair™": "character",
    "it's a wooden chair": "character",
    "a (wooden chair:1.2) by a window": "character",
    "a street in 1984": "digits",
    "a bottle of no5 perfume": "digits",
}
HARMLESS = """a pineapple and an apple beside a shell on a mossy rock
A potter shapes a marionette. The kitchen smells of basil and ginger.
a jaguar resting on a branch, 3d render
rose petals, olive oil and amber beads on marble
a stylish armchair, brandy glass, gunmetal lamp and bloodless moonlight""".splitlines()


def words(prompt):
    return frozenset(re.findall(r"[a-z0-9-]+", prompt.lower()))


FILLING = words("a above across an and at behind by from her in into its of on over the through to under while with")


def without_filling():
    return [words(prompt) - FILLING for prompt in neutral_prompts()]


def either(names):
    return re.compile("|".join(rf"\b{name}\b" for name in names))


def test_every_bundled_prompt_is_free_of_forbidden_words():
    bad = {prompt: found for prompt in neutral_prompts() if (found := findings(prompt))}
    assert not bad, "\n".join(f"{prompt!r}: {'; '.join(found)}" for prompt, found in bad.items())


@pytest.mark.parametrize("plant, kind", PLANTS.items())
def test_planted_examples_are_found(plant, kind):
    assert any(found.startswith(f"{kind}: ") for found in findings(plant))


@pytest.mark.parametrize("kind", kinds())
def test_every_listed_word_is_found_in_every_form(kind):
    assert sum(k == kind for k in PLANTS.values()) >= 2, "plant two examples of the kind"
    for word in kinds()[kind]:
        for form in (word, word.replace(" ", "-"), word.replace(" ", ""), f"{word}s", f"{word}'s"):
            assert PATTERNS[kind].search(f"view of {form}, at noon").group().startswith(form), form


def test_the_list_is_in_order():
    every = [word for listed in kinds().values() for word in listed]
    assert len(kinds()) == 11 and min(map(len, kinds().values())) >= 50
    assert [word for word, n in Counter(every).items() if n > 1] == []
    assert [word for word in every if not re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)*", word)] == []


@pytest.mark.parametrize("prompt", HARMLESS)
def test_harmless_words_that_look_like_names_pass(prompt):
    assert findings(prompt) == []


def test_bundled_prompts_cover_many_subjects_evenly():
    texts = neutral_prompts()
    assert len(texts) == len(set(texts)) == 384
    assert sorted(texts) == sorted(line for _, *lines in SECTIONS for line in lines)
    assert len({head for head, *_ in SECTIONS}) == 24 and all(head.startswith("# ") for head, *_ in SECTIONS)
    assert {len(lines) for _, *lines in SECTIONS} == {16}


def test_the_first_bundled_prompts_are_as_varied_as_all():
    of = {line: head for head, *lines in SECTIONS for line in lines}
    for start in range(0, 384, 24):
        assert len({of[prompt] for prompt in neutral_prompts()[start : start + 24]}) == 24
    lengths = [len(prompt.split()) for prompt in neutral_prompts()[:24]]
    assert min(lengths) <= 5 and max(lengths) >= 20


def test_bundled_prompts_are_short_and_long():
    lengths = [len(prompt.split()) for prompt in neutral_prompts()]
    assert (min(lengths), max(lengths)) == (3, 40)
    for (least, most), share in LENGTHS.items():
        assert sum(least <= n <= most for n in lengths) / len(lengths) >= share, (least, most)


def test_bundled_prompts_differ_in_words():
    content = without_filling()
    counts = Counter(word for prompt in content for word in prompt)
    assert len(counts) >= 1500
    assert sum(n == 1 for n in counts.values()) >= 1000
    assert max(counts.values()) <= 0.08 * len(content), counts.most_common(3)
    # an opening that many share would be a template
    assert Counter(" ".join(p.lower().split()[:3]) for p in neutral_prompts()).most_common(1)[0][1] <= 3


def test_no_two_bundled_prompts_are_nearly_the_same():
    pairs = itertools.combinations(zip(map(words, neutral_prompts()), neutral_prompts()), 2)
    near = [(p, q) for (a, p), (b, q) in pairs if len(a & b) / len(a | b) > 0.4]
    assert not near
    close = [len(a & b) / len(a | b) for a, b in itertools.combinations(without_filling(), 2)]
    assert max(close) < 0.45


@pytest.mark.parametrize("names, least", [(STYLES, 75), (VIEWS, 40)], ids=["styles", "views"])
def test_bundled_prompts_use_many_styles_and_views(names, least):
    names = names.replace("\n", " ").split(", ")
    every = "\n".join(neutral_prompts()).lower()
    assert [name for name in names if not either([name]).search(every)] == []
    assert len(set(names)) == len(names) >= least


def test_about_half_of_the_bundled_prompts_leave_the_style_open():
    styled = either(STYLES.replace("\n", " ").split(", "))
    share = sum(bool(styled.search(prompt.lower())) for prompt in neutral_prompts()) / len(neutral_prompts())
    assert 0.35 <= share <= 0.65


TEXT = "# mine\n\n  a red chair \nA red chair\n\ta {green|blue} chair\na red chair\n# a comment\n'round' #table\n"
LISTED = ["a red chair", "A red chair", "a {green|blue} chair", "'round' #table"]
LINES = """# mine
{"prompt": " a red chair ", "seed": 1, "negative": "people"}

{"text": "A red chair", "file": "a.png"}
"a {green|blue} chair"
{"text": "ignored", "prompt": "a red chair"}
{"prompt": "'round' #table"}
"""


@pytest.mark.parametrize("lines", [TEXT, LINES], ids=["text", "jsonl"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
def test_text_and_jsonl_give_the_same_prompts(tmp_path, lines, end, mark):
    written = mark + lines.replace("\n", end)
    assert parse_prompts(written) == LISTED
    for name in ("mine.txt", "mine"):  # the contents tell, not the name
        file = tmp_path / name
        file.write_bytes(written.encode("utf-8"))
        assert read_prompts(file) == read_prompts(str(file)) == LISTED


def test_files_joined_with_their_marks_and_other_scripts(tmp_path):
    file = tmp_path / "joined.txt"
    file.write_bytes("\ufeff雨の中の猫\n\ufeff# note\n\ufeffein Stuhl am Fenster\u2028\n".encode())
    assert read_prompts(file) == ["雨の中の猫", "ein Stuhl am Fenster"]
    assert parse_prompts('"two\u2028parts"\n"two\\nlines"\n"\\u732b \\ud83d\\udc31"') == ["two\u2028parts", "two\nlines", "猫 🐱"]


@pytest.mark.parametrize(
    "line",
    ["{day|night} sky", "{{red|blue} hat|coat}", "[[cat]] on a chair", '"quoted" sign', '"open', "(cat:1.2)", "42", "null"],
)
def test_text_that_only_resembles_json(line):
    assert parse_prompts(f"{line}\na dog") == [line, "a dog"]


def test_no_prompts_are_none_in_a_text_box_and_an_error_in_a_file(tmp_path):
    file = tmp_path / "empty.txt"
    for text in ("", "\n \n# only a comment\n", "\ufeff"):
        assert parse_prompts(text) == []
        file.write_text(text, encoding="utf-8")
        with pytest.raises(
            PromptFileError, match="empty.txt: expected at least one prompt; found none. Write one prompt a line.$"
        ):
            read_prompts(file)


OK = '{"prompt": "a cat"}\n'
BAD = [
    (
        OK + "a dog",
        "line 2: expected a JSON object or string.*found 'a dog', which is not valid JSON (column 1: Expecting value). Write",
    ),
    ('{"prompt": "a cat",\n', "line 1: expected a JSON object or string.*not valid JSON (column 20: Expecting property name"),
    ("{\n", "line 1: expected a JSON object or string.*in one line of its own, or none."),
    ('["a cat", "a dog"]', "line 1: expected text; found a list. Write each prompt as a JSON string."),
    (OK + "\n# note\n7", "line 4: expected text; found a number."),
    (OK + "true", "line 2: expected text; found true or false."),
    (OK + '{"seed": 1' + "0" * 5000 + "}", "line 2: expected a JSON object or string.*not valid JSON (Exceeds the limit"),
    (OK + "[" * 100_000, "line 2: expected a JSON object or string.*not valid JSON ("),
    (
        OK + '{"caption": "a dog", "id": 3}',
        "line 2: expected the key 'prompt' or 'text' in the object; found 'caption', 'id'. Rename the key.",
    ),
    ("{}", "line 1: expected the key 'prompt' or 'text' in the object; found nothing."),
    ('{"text": null}', "line 1, key 'text': expected text; found null."),
    ('{"prompt": ["a cat"], "text": "a cat"}', "line 1, key 'prompt': expected text; found a list."),
    ('{"prompt": {"en": "a cat"}}', "line 1, key 'prompt': expected text; found an object."),
    (OK + '{"prompt": " "}', "line 2: expected a prompt; found an empty text. Delete the line."),
    (OK + '"a \\ud83d dog"', "line 2: expected text; found half of a character"),
    (OK + '"a \\u0000 dog"', "line 2: expected text; found a NUL character."),
    ('a cat\n{"prompt": "a dog"}', "line 2: expected plain text; found JSON: "),
    ("a cat\na \0 dog", "line 2: expected text; found a NUL character."),
    ("a cat\n" + "x" * 2001, "line 2: expected at most 2,000 characters; found 2,001, from 'xxxx"),
]


@pytest.mark.parametrize("text, message", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_named_in_box_and_file(tmp_path, text, message):
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(PromptFileError, match="^prompts, " + pattern) as caught:
        parse_prompts(text)
    assert len(str(caught.value)) < 400
    file = tmp_path / "mine.txt"
    file.write_bytes(text.encode())
    with pytest.raises(PromptFileError, match="mine.txt, " + pattern):
        read_prompts(file)


def test_the_name_of_a_jsonl_file_counts_where_its_contents_leave_doubt(tmp_path):
    for name in ("mine.jsonl", "mine.NDJSON"):
        file = tmp_path / name
        file.write_text('{prompt: "a cat"}\n')
        with pytest.raises(PromptFileError, match="line 1: expected a JSON object or string"):
            read_prompts(file)


@pytest.mark.parametrize(
    "data, message",
    [
        (
            "a cat\na café\n".encode("latin-1"),
            "mine.txt, line 2: expected text in UTF-8; found the byte 0xe9, which is not. Save",
        ),
        ("a cat".encode("utf-16"), "mine.txt: expected text in UTF-8; found UTF-16. Save the file as UTF-8."),
        ("a cat".encode("utf-16-le"), "mine.txt, line 1: expected text; found a NUL character."),
        (b"PK\x03\x04\x00\x00", "mine.txt, line 1: expected text; found a NUL character."),
    ],
)
def test_other_encodings_and_kinds_of_files(tmp_path, data, message):
    file = tmp_path / "mine.txt"
    file.write_bytes(data)
    with pytest.raises(PromptFileError, match=re.escape(message)):
        read_prompts(file)


def test_missing_files_folders_and_files_that_cannot_be_read(tmp_path, monkeypatch):
    assert issubclass(PromptFileError, UniForgetError)
    with pytest.raises(PromptFileError, match="nothing.txt: expected a file with prompts; found no such file. Check the path."):
        read_prompts(tmp_path / "nothing.txt")
    with pytest.raises(PromptFileError, match="expected a file with prompts; found a folder. Name one file inside it."):
        read_prompts(tmp_path)
    with pytest.raises(PromptFileError, match="expected a file with prompts; it cannot be read: embedded null byte."):
        read_prompts("a\0b")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PromptFileError, match="mine.txt: .*cannot be read: .*Permission denied. Check its permissions."):
        read_prompts(tmp_path / "mine.txt")


def test_limits(tmp_path, monkeypatch):
    file = tmp_path / "many.txt"
    every = [f"chair {i}" for i in range(module.MAX_PROMPTS)]
    file.write_text("\n".join([*every, "chair 7"]))
    assert read_prompts(file) == every
    with file.open("a") as f:
        f.write("\none more")
    with pytest.raises(PromptFileError, match="many.txt, line 100002: expected at most 100,000 different prompts; found more."):
        read_prompts(file)
    assert parse_prompts("x" * module.MAX_CHARACTERS) == ["x" * module.MAX_CHARACTERS]
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    file.write_bytes(b"aaa\n" * (1 << 18))
    assert read_prompts(file) == ["aaa"]
    with file.open("ab") as f:
        f.write(b"\n")
    with pytest.raises(PromptFileError, match="many.txt: expected at most 1 MiB of prompts; found more."):
        read_prompts(file)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_that_hold_nothing_are_counted_and_not_kept(end):
    text = f"a chair{end * 400_000}a table"
    tracemalloc.start()
    assert parse_prompts(text) == ["a chair", "a table"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(PromptFileError, match=r"at most 16 MiB and 500,000 lines; found .* and 500,001 line ends"):
        parse_prompts(end * 500_001)
    with pytest.raises(PromptFileError, match="line 400001: "):
        parse_prompts(f"a chair{end * 400_000}" + '{"a": 1}')


def test_long_and_deep_json_is_refused():
    for line in ("[" * 200_000, '{"prompt": "a", "more": "' + "x" * module.MAX_LINE + '"}'):
        with pytest.raises(PromptFileError, match=r"line 1: expected a JSON object or string.*(nested too deeply|is the most)"):
            parse_prompts(line, jsonl=True)
