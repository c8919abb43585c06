"""docs/families.md lists the families and the published models that there are, with what was tested."""

from pathlib import Path

from uniforget.model.families import FAMILIES, sizes

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
SMALL = ["folding", "gradients", "living sites", "learning"]


def row(entry):
    """A published model's line of the table."""
    tested = entry["tested"]
    words = ["small"] if tested[: len(SMALL)] == SMALL else []
    words += [word for word in tested if word not in SMALL]
    like = sizes()[entry["like"]]["title"] if "like" in entry else ""
    return f"| {entry['title']} | `{entry['family']}` | {like} | {', '.join(words)} |"


def test_every_family_has_a_row():
    for family in FAMILIES:
        assert f"\n| `{family.name}` | " in TEXT, family.name


def test_the_table_of_published_models_is_that_of_the_sizes():
    found = TEXT.partition("## Published models")[2].strip().splitlines()
    rows = [line for line in found if line.startswith("| ")][2:]
    expected = [row(entry) for entry in sizes().values()]
    assert len(expected) >= 40 and rows == expected, "\n".join(expected)
