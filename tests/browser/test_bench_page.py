"""The benchmark of Compare's script runs, with small pictures; how long anything takes is not tested."""

import json
import subprocess
import sys

from bench import docs

# In a process of its own: Playwright runs once in a thread, and this one has it.
RUN = "import sys; from bench import page; sys.exit(page.main(sys.argv[1:]))"


def test_the_command_runs(chromium, tmp_path):
    file = tmp_path / "page.json"
    run = subprocess.run(
        [sys.executable, "-c", RUN, "--json", file, "--pictures", "64"], capture_output=True, text=True, cwd=docs.ROOT
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {row["renderer"] for row in found["rows"]} == {"classic", "nodes2"} and found["machine"]["date"]
    assert "| classic | pan |" in docs.page(found)
