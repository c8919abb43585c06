"""What ComfyUI's registry gets: the archive that ``comfy node pack`` makes, and what the registry asks of it."""

import ast
import importlib.util
import json
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import pathspec
import pytest

from launcher import checks

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None

ROOT = Path(__file__).resolve().parents[2]
MOST = 8_000_000  # bytes beside the demo model
DEMO = ("testbed/testbed.safetensors", "testbed/vae.safetensors")
CODE = ("nodes", "uniforget", "scripts")


@cache
def archive():
    """Paths of the files in the archive: git's, without those that .comfyignore names by gitignore's rules."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git repository")
    ignored = pathspec.GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines())
    return frozenset(name for name in listed.split("\0") if name and (ROOT / name).is_file() and not ignored.match_file(name))


def modules():
    return {name: ast.parse((ROOT / name).read_text(encoding="utf-8")) for name in sorted(archive()) if name.endswith(".py")}


def wanted(name, node):
    """Files of ours that an import statement of the file `name` needs."""
    if isinstance(node, ast.Import):
        paths = [alias.name.split(".") for alias in node.names]
    elif node.level:
        parts = name.split("/")[: -node.level]
        paths = [[*parts, *(node.module or "").split(".")]] if node.module else [[*parts, alias.name] for alias in node.names]
    else:
        paths = [node.module.split(".")]
    for path in paths:
        base = ROOT.joinpath(*path)
        if base.with_suffix(".py").is_file():
            yield "/".join(path) + ".py"
        elif (base / "__init__.py").is_file():
            yield "/".join([*path, "__init__.py"])
            if isinstance(node, ast.ImportFrom):
                yield from ("/".join([*path, a.name]) + ".py" for a in node.names if (base / f"{a.name}.py").is_file())


def test_the_archive_is_small():
    sizes = {name: (ROOT / name).stat().st_size for name in archive()}
    assert sizes.keys() >= {*DEMO}, "the demo model is a part of the pack"
    total = sum(size for name, size in sizes.items() if name not in DEMO)
    assert total <= MOST, f"{total:,} bytes beside the demo model: {sorted(sizes.items(), key=lambda item: -item[1])[:6]}"


def test_the_archive_is_the_pack():
    for needed in (
        *("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "nodes/apply.py", "web/compare.js"),
        *(
            "locales/ja/nodeDefs.json",
            "web/docs/UniForgetApply.md",
            "uniforget/model/families/sizes.json",
            "uniforget/neutral.txt",
        ),
        "uniforget/report/report.html",
    ):
        assert needed in archive(), needed
    assert {"example_workflows", "locales", "web", "scripts", "docs"} <= {name.split("/")[0] for name in archive() if "/" in name}
    assert not {"tests", "bench", "launcher"} & {name.split("/")[0] for name in archive()}


def test_nothing_that_is_imported_is_left_out():
    missing, checked = [], 0
    for name, tree in modules().items():
        # of the testbed only what is imported with the module: what makes it stays here
        nodes = ast.walk(tree) if name.split("/")[0] in CODE or "/" not in name else tree.body
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for file in wanted(name, node):
                    checked += 1
                    missing += [f"{name} needs {file}"] if file not in archive() else []
    assert checked > 300 and not missing, missing


def test_the_archive_runs_no_text_as_code_and_installs_nothing():
    seen = 0
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                bare = isinstance(node.func, ast.Name)
                assert not (bare and called in ("eval", "exec", "compile", "__import__")), f"{name}:{node.lineno}: {called}"
                words = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                starts = called in ("run", "call", "Popen", "check_call", "check_output", "system")
                assert not (starts and {"pip", "uv", "install"} & set(words)), f"{name}:{node.lineno}: installs packages"
                seen += 1
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {n.split(".")[0] for n in names} & {"pip", "ensurepip"}, f"{name}:{node.lineno}: imports pip"
    assert seen > 1000


@pytest.mark.skipif(tomllib is None, reason="Python 3.10 reads no TOML")
def test_the_registry_is_told_what_it_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    about, comfy = project["project"], project["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9_-]{0,99}", about["name"]) and re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert about["description"] and about["license"] == {"file": "LICENSE"} and about["urls"]["Repository"].startswith("https://")
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"] == ">=0.3.75"
    listed = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(about["dependencies"]) == sorted(line for line in listed if line and not line.startswith("#"))
    raw = about["urls"]["Repository"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    assert comfy["Icon"].startswith(raw) and comfy["Icon"].removeprefix(raw) in archive()


def test_the_icon_is_a_drawing_and_nothing_else():
    root = ElementTree.parse(ROOT / "icon.svg").getroot()
    plain = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert plain <= {"svg", "g", "rect", "circle", "path"} and root.get("viewBox") == "0 0 64 64"
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on") or "href" in key]


def test_bandit_looks_at_all_that_ships():
    [arguments] = [arguments for name, arguments, _ in checks.linters() if name == "bandit"]
    looked = [part for part in arguments if (ROOT / part).exists()]
    left = [name for name in modules() if not any(name == part or name.startswith(f"{part}/") for part in looked)]
    assert not left
    if importlib.util.find_spec("bandit") is not None:
        import sys

        done = subprocess.run([sys.executable, "-m", *arguments, "-f", "json"], cwd=ROOT, capture_output=True, text=True)
        assert json.loads(done.stdout)["results"] == [] and done.returncode == 0, done.stdout
