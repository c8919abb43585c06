"""Imports go one way, and only the layers that may know a host import one (read from the source, nothing is imported)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "node_helpers",
    "latent_preview",
    "server",
    "modules",
}
HOSTS |= {"diffusers", "transformers", "gradio", "backend"}
# uniforget/: the rooms and the modules beside them. Each may import from its own room and from those in the lines above.
RANKS = [
    {"__version__", "errors", "config", "param", "atomic", "outputs", "untrusted"},
    {"prompts"},
    {"model"},
    {"mask"},
    {"learn"},
    {"checkpoint", "checks"},
    {"hosts"},
    {"report"},
    {"cli"},
    {"__init__", "__main__"},
]
# (file, what it imports from above): each is to go
CIRCLES: set[tuple[str, str]] = set()


def modules(folder):
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"{folder} has no modules"
    return found


def imports(path):
    """``(dotted name with the folder's package resolved, line, at module level)`` of each import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT).parent.parts
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    later = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in later
        elif isinstance(node, ast.ImportFrom):
            base = ["", *package][: len(package) + 2 - node.level] if node.level else []
            name = ".".join([*base[1:], *([node.module] if node.module else [])]) if node.level else node.module
            for target in [name] if node.module else [f"{name}.{alias.name}".lstrip(".") for alias in node.names]:
                yield target, node.lineno, id(node) not in later


def ids(path):
    return str(path.relative_to(ROOT))


def test_the_reader_of_imports_sees_relative_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "nodes" / "sub" / "a.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "import os.path\nfrom ...uniforget import mask\nfrom .. import inputs\nfrom .b import c\ndef f():\n    import comfy\n"
    )
    assert list(imports(source)) == [
        *(("os.path", 1, True), ("uniforget", 2, True), ("nodes.inputs", 3, True), ("nodes.sub.b", 4, True), ("comfy", 6, False))
    ]


@pytest.mark.parametrize("path", modules("uniforget"), ids=ids)
def test_the_engine_imports_no_host_outside_of_hosts(path):
    if "hosts" in path.parts:
        return
    bad = [
        f"{name} (line {line})"
        for name, line, _ in imports(path)
        if name.split(".")[0] in HOSTS | {"nodes", "testbed", "launcher"}
    ]
    assert not bad, f"{ids(path)} imports {', '.join(bad)}"


def rank(room):
    found = [i for i, rooms in enumerate(RANKS) if room in rooms]
    assert len(found) == 1, f"uniforget/{room} is in no room that RANKS knows; put it into one, or say here what it may import"
    return found[0]


def above(path):
    """What a module imports from rooms that are not below its own: ``(dotted name, line)``."""
    inside = path.relative_to(ROOT / "uniforget").parts[0].removesuffix(".py")
    below = set().union(*RANKS[: rank(inside)]) | {inside}
    if rank(inside) == 0:
        below = RANKS[0]
    for name, line, _ in imports(path):
        package, _, rest = name.partition(".")
        if package == "uniforget":
            rank(room := rest.partition(".")[0])
            if room not in below:
                yield name, line


def test_the_reader_of_ranks_finds_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "uniforget" / "mask" / "a.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "from .. import errors, learn\nfrom ..model.b import c\nfrom . import d\ndef f():\n    from ..hosts.comfy import e\n"
    )
    assert list(above(source)) == [("uniforget.learn", 1), ("uniforget.hosts.comfy", 5)]
    source.write_text("from ..attic import a\n")
    with pytest.raises(AssertionError, match="uniforget/attic is in no room"):
        list(above(source))
    stray = tmp_path / "uniforget" / "stray.py"
    stray.write_text("")
    with pytest.raises(AssertionError, match="uniforget/stray is in no room"):
        list(above(stray))


@pytest.mark.parametrize("path", modules("uniforget"), ids=ids)
def test_the_engine_imports_only_what_lies_below(path):
    bad = [f"{name} (line {line})" for name, line in above(path) if (path.relative_to(ROOT).as_posix(), name) not in CIRCLES]
    assert not bad, f"{ids(path)} imports {', '.join(bad)}, which does not lie below it"


def test_every_circle_that_is_excused_is_there():
    found = {(path.relative_to(ROOT).as_posix(), name) for path in modules("uniforget") for name, _ in above(path)}
    assert found == CIRCLES


def test_few_modules_lie_outside_of_the_rooms():
    assert len(list((ROOT / "uniforget").glob("*.py"))) <= 9


@pytest.mark.parametrize("path", [*modules("nodes"), *modules("uniforget")], ids=ids)
def test_the_pack_imports_itself_by_relative_names(path):
    # ComfyUI loads the pack under a name made from its path: 'import uniforget' finds nothing there
    tree = ast.parse(path.read_text(encoding="utf-8"))
    absolute = [
        *(n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level and n.module),
        *(a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names),
    ]
    own = {"uniforget", "testbed", "launcher"}
    bad = [name for name in absolute if name.split(".")[0] in own]
    assert not bad, f"{ids(path)} imports {', '.join(bad)} by absolute name"


def test_web_uis_and_comfyui_know_nothing_of_each_other():
    for path in [*modules("nodes"), *modules("uniforget/hosts/comfy")]:
        bad = [name for name, _, _ in imports(path) if "webui" in name.split(".")]
        assert not bad, f"{ids(path)} imports {', '.join(bad)}"
    for path in [*modules("scripts"), *modules("uniforget/hosts/webui")]:
        bad = [
            name for name, _, _ in imports(path) if name.startswith(("comfy", "nodes", "folder_paths", "uniforget.hosts.comfy"))
        ]
        assert not bad, f"{ids(path)} imports {', '.join(bad)}"


@pytest.mark.parametrize("path", modules("testbed"), ids=ids)
def test_the_testbed_knows_no_nodes_and_loads_no_host_on_import(path):
    bad = [
        f"{name} (line {line})"
        for name, line, at_top in imports(path)
        if name.split(".")[0] in {"nodes", "launcher"} or (at_top and name.split(".")[0] in HOSTS)
    ]
    assert not bad, f"{ids(path)} imports {', '.join(bad)}"


@pytest.mark.parametrize("path", modules("launcher"), ids=ids)
def test_the_launcher_starts_with_the_standard_library(path):
    import sys

    bad = [
        name for name, _, at_top in imports(path) if at_top and name.split(".")[0] not in {*sys.stdlib_module_names, "launcher"}
    ]
    assert not bad, f"{ids(path)} imports {', '.join(bad)}"


def test_no_module_is_longer_than_it_should_be():
    folders = ("uniforget", "nodes", "scripts", "testbed", "launcher")
    long = [ids(p) for f in folders for p in modules(f) if len(p.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long, f"over 400 lines: {', '.join(long)}"
