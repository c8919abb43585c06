"""Every benchmark runs at its smallest size, and docs/bench.md is what the committed figures say."""

import importlib
import json
from pathlib import Path

import pytest

from bench import docs, learn

ROOT = Path(__file__).resolve().parents[2]
# What each command is given beside --json FILE, and the keys that its file must have.
SMALLEST = {
    "checks": (["--smallest", "--testbed", "mmdit", "--work", "{tmp}"], {"rows", "machine"}),
    "compact": (["--smallest"], {"rows", "machine"}),
    "forgetting": (["--smallest", "--testbed", "mmdit", "--work", "{tmp}"], {"rows", "machine"}),
    "gpu": (["--tiny", "--models", "sdxl,flux,z_image"], {"rows", "peak_flops", "machine"}),
    "house": ([], {"engine_lines", "doc_words"}),
    "learn": (["--smallest", "--only", "flux", "--repeats", "1"], {"rows", "ratios", "machine"}),
    "likeness": ([], {"gone", "recognizable", "machine"}),
    "sanitize": (["--smallest"], {"ratio_to_copy", "extra_bytes", "machine"}),
    "verdict": (["--smallest"], {"copies_found", "false_alarms", "mixtures_forgotten", "machine"}),
}
# Run by no test yet: in a page they take minutes, and want an option --smallest.
NOT_YET = {"first_contact", "page"}
# Started by other benchmarks only: no command of their own.
PARTS = {"feed"}
COMMANDS = {path.stem for path in (ROOT / "bench").glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}


@pytest.mark.parametrize("name", sorted(COMMANDS - PARTS - NOT_YET - {"docs"} - SMALLEST.keys()))
def test_every_other_benchmark_is_run_by_a_test_of_its_own(name):
    """What needs ComfyUI or a browser, or takes more than a few seconds."""
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if f"{name}.main(" in path.read_text(encoding="utf-8")]
    assert tests, f"bench.{name} is run by no test: give it an option --smallest, and a line in SMALLEST"


def test_no_benchmark_is_listed_that_is_gone():
    assert SMALLEST.keys() | NOT_YET | PARTS <= COMMANDS


@pytest.mark.parametrize("name", SMALLEST)
def test_every_benchmark_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # to compile umap-learn takes longer than to run it on a few points
    file = tmp_path / "figures.json"
    arguments, keys = SMALLEST[name]
    arguments = [text.format(tmp=tmp_path) for text in arguments]
    assert not importlib.import_module(f"bench.{name}").main([*arguments, "--json", str(file)])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found.keys() >= keys and found.get("rows", [0])
    section = next((s for s in docs.SECTIONS if s.module == name), None)
    if section:
        assert found["machine"]["date"] in docs.where(found["machine"]) and len(section.table(found)) > 50
    LOOKS.get(name, lambda found, tmp_path: None)(found, tmp_path)


def look_at_learn(found, tmp_path):
    rows = {(row["objective"], row["memory"]): row for row in found["rows"]}
    assert rows.keys() == {("two_backward", ""), ("ecodiff", ""), *learn.SCHEMES}
    assert all(row["seconds_per_step"] > 0 and row["peak_bytes"] > 0 and row["updates_per_forward"] > 0 for row in rows.values())
    # Arithmetic does not depend on the machine.
    passes = {name: row["arithmetic_per_forward"] for name, row in rows.items()}
    assert passes["ecodiff", ""] > passes["two_backward", ""] > 1.5 * passes["trajectory", "keep"]
    assert passes["trajectory", "keep"] == pytest.approx(passes["trajectory", "micro"])
    for objective in ("trajectory", "stepwise"):
        assert rows[objective, "micro"]["peak_bytes"] < rows[objective, "keep"]["peak_bytes"]


def look_at_gpu(found, tmp_path):
    assert [(row["model"], row["weights"]) for row in found["rows"]] == [
        (m, w) for m in ("sdxl", "flux", "z_image") for w in ("bf16", "fp8")
    ]
    for bf16, fp8 in zip(found["rows"][::2], found["rows"][1::2]):
        assert "error" not in bf16 and "error" not in fp8
        assert fp8["weight_bytes"] < 0.95 * bf16["weight_bytes"], "what is in blocks is stored in half the bytes"
        assert bf16["flops_per_update"] == fp8["flops_per_update"] > 0 and 1.5 < bf16["arithmetic_per_forward"] < 3.5
        assert bf16["share_of_peak"] > 0 and bf16["mask_bytes"] > 0 and bf16["syncs_per_update"] is None


def look_at_forgetting(found, tmp_path):
    """And its page: a table, the plot, and the analysis, which is drawn from what was kept the second time."""
    from bench import forgetting, forgetting_docs

    assert [row["method"] for row in found["rows"]] == ["original", "gates"]
    original = found["rows"][0]
    shares = [original[name] for name in ("copy", "partial", "broken", "off_prompt", "collapsed", "forgotten")]
    assert sum(shares) == pytest.approx(1) and original["samples"] > 5 and original["measured"] == "af"
    assert {"after_attack", "control_attack", "after_finetune"} <= original.keys()
    page = tmp_path / "page.md"
    page.write_text(f"{forgetting_docs.BEGIN}\n{forgetting_docs.END}\n")
    arguments = ["--smallest", "--testbed", "mmdit", "--json", str(tmp_path / "figures.json"), "--docs", str(page)]
    forgetting.main([*arguments, "--work", str(tmp_path / "empty")])
    assert "analysis" not in page.read_text(), "no mask was kept there"
    forgetting.main([*arguments, "--work", str(tmp_path)])
    assert "](page_mmdit_analysis.png)" in page.read_text() and "](page_mmdit.svg)" in page.read_text()
    picture = (tmp_path / "page_mmdit_analysis.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(list(tmp_path.glob("analysis-mmdit-*-4x1.npz"))) == 1


def look_at_checks(found, tmp_path):
    from bench import checks

    rows = [(row["check"], row.get("caption"), row["when"]) for row in found["rows"]]
    assert rows == [("picture", c, w) for c in (False, True) for w in ("before", "after")] + [
        ("prompt", None, w) for w in ("before", "after")
    ]
    assert all(0 <= row["auc_interval"][0] <= row["auc"] <= row["auc_interval"][1] <= 1 for row in found["rows"])
    assert found["rows"][1]["memorized"] == 6 and checks.tables(found).count("| mmdit |") == 6


def look_at_verdict(found, tmp_path):
    assert found["copies_found"] > 0.5 and sum(found["mixtures"].values()) == 12 and found["mixtures_forgotten"] == 0


def look_at_likeness(found, tmp_path):
    from uniforget.checks import likeness

    assert found["gone"] == pytest.approx(likeness.GONE, abs=0.03) and found["recognizable"] == pytest.approx(
        likeness.RECOGNIZABLE, abs=0.03
    )


LOOKS = {
    "learn": look_at_learn, "gpu": look_at_gpu, "forgetting": look_at_forgetting, "verdict": look_at_verdict,
    "checks": look_at_checks, "likeness": look_at_likeness,
}  # fmt: skip


def test_a_gpu_is_asked_for(tmp_path, monkeypatch, capsys):
    from bench import gpu

    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--json", str(tmp_path / "x.json")]) == 2
    assert "--tiny" in capsys.readouterr().err


def test_the_page_is_what_its_command_writes():
    assert docs.PAGE.read_text(encoding="utf-8") == docs.text(), "python -m bench.docs writes it"
    assert "## Learning" in docs.text(), "docs/learning.md links to it"


def test_the_page_says_where_figures_are_from_and_where_there_are_none(tmp_path):
    assert "No GPU could be had" in docs.text(tmp_path) and "Measured" not in docs.text(tmp_path)
    machine = {
        "date": "2001-02-03",
        "cpu": "abacus",
        "cores": 1,
        "load": 0.5,
        "python": "3",
        "torch": "2",
        "gpu": "slide rule",
        "gpu_bytes": 2**31,
    }
    (tmp_path / "sanitize.json").write_text(
        json.dumps({"file_bytes": 8e9, "touched": 0.5, "ratio_to_copy": 1.25, "extra_bytes": None, "machine": machine})
    )
    found = docs.text(tmp_path)
    assert (
        "**1.25** times" in found
        and "Measured 2001-02-03: slide rule (2 GiB), abacus (1 core, load 0.5), Python 3, torch 2." in found
    )
