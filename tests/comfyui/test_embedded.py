"""Embedded masks and the server's routes for them: what a page may ask, what it is told, and what nobody may do."""

import json
import os
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import torch

from launcher.errors import WorkflowError
from uniforget.mask import file as maskfile
from uniforget.mask import subspacefile
from uniforget.mask import text as masktext
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask

FC2 = "joint_blocks.1.x_block.mlp.fc2"


@pytest.fixture(scope="module")
def masks(client):
    """A folder of our own in the server's models/uniforget/ (which may be a user's); its name starts the names of masks."""
    root = Path(client.get("/internal/folder_paths")["uniforget"][0])
    folder = root / f"uniforget_embedded_{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def mask():
    return GateMask({FC2: (torch.arange(1024) % 5 != 0).float()}, {FC2: "ffn"}, MaskInfo("sd3", "", "Demo", preset="medium"))


def ask(client, path, body=None, headers=None, data=None):
    """``(status, JSON)`` of a GET, or of a POST when there is a body."""
    data = json.dumps(body).encode() if body is not None else data
    request = urllib.request.Request(client.url + path, data, headers or ({"Content-Type": "application/json"} if data else {}))
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        content = error.read()
        return error.code, json.loads(content) if content else None


def get_text(client, name):
    return ask(client, "/uniforget/mask_text?" + urllib.parse.urlencode({"name": name}))


def test_a_mask_becomes_text_and_a_file_again(client, masks, mask):
    maskfile.save(mask, masks / "made.safetensors")
    status, found = get_text(client, f"{masks.name}/made.safetensors")
    assert status == 200 and found["text"] == masktext.to_text(mask)
    summary = found["summary"]
    assert summary["digest"] == mask.digest() and summary["family"] == "Stable Diffusion 3 / 3.5" and summary["hard"] is True
    assert summary["off"] == {"ffn": pytest.approx(0.2, abs=0.01), "all": pytest.approx(0.2, abs=0.01)}
    assert ask(client, "/uniforget/inspect_mask", {"text": found["text"]}) == (200, {"summary": summary})
    for number in (1, 2):
        status, saved = ask(client, "/uniforget/save_mask", {"text": found["text"], "name": f"{masks.name}/again"})
        assert (status, saved["name"]) == (200, f"{masks.name}/again_0000{number}.safetensors")
        assert (masks / f"again_0000{number}.safetensors").read_bytes() == (masks / "made.safetensors").read_bytes()
    # ComfyUI's own prefix works as well: it is what pages use
    assert ask(client, "/api/uniforget/inspect_mask", {"text": found["text"]})[0] == 200


def test_saves_at_once_replace_nothing(client, masks, mask):
    answers = []
    body = {"text": masktext.to_text(mask), "name": f"{masks.name}/busy"}
    threads = [threading.Thread(target=lambda: answers.append(ask(client, "/uniforget/save_mask", body))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found["name"] for _, found in answers) == [f"{masks.name}/busy_{n:05}.safetensors" for n in range(1, 9)]


OUTSIDE = ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x", "..", ".hidden", "con", "a\x00b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leaves_the_folder(client, masks, mask, name):
    before = sorted(masks.parent.rglob("*"))
    status, found = ask(client, "/uniforget/save_mask", {"text": masktext.to_text(mask), "name": name})
    assert status == 400 and "expected a plain name inside" in found["error"] and "Change the name" in found["error"]
    status, found = get_text(client, f"{name}.safetensors")
    assert status in (400, 404) and found["error"]
    assert sorted(masks.parent.rglob("*")) == before


def test_what_is_wrong_is_said_as_json(client, masks, mask):
    text = masktext.to_text(mask)
    cases = [
        (get_text(client, "absent.safetensors"), 404, "There is no mask"),
        (get_text(client, ""), 404, "No mask is chosen"),
        (get_text(client, "a" * 5000), 400, "at most 1000 characters"),
        (get_text(client, "a" * 900 + ".safetensors"), 400, "Change the name"),
        (ask(client, "/uniforget/inspect_mask", {"text": ""}), 404, "this node is empty"),
        (ask(client, "/uniforget/inspect_mask", {"text": text[:-5]}), 400, "cut off"),
        (ask(client, "/uniforget/inspect_mask", {"text": "a cat"}), 400, "expected text that starts with"),
        (ask(client, "/uniforget/inspect_mask", {"text": 5}), 400, "with the mask's text"),
        (ask(client, "/uniforget/inspect_mask", ["text"]), 400, "with the mask's text"),
        (ask(client, "/uniforget/inspect_mask", data=b"{", headers={"Content-Type": "application/json"}), 400, "no JSON"),
        (ask(client, "/uniforget/inspect_mask", data=b"[" * 90000, headers={"Content-Type": "application/json"}), 400, "no JSON"),
        (ask(client, "/uniforget/save_mask", {"text": text}), 400, "Setting 'name'"),
        (ask(client, "/uniforget/save_mask", {"text": text, "name": " "}), 400, "Setting 'name'"),
        (ask(client, "/uniforget/save_mask", {"text": text + "!", "name": "bad"}), 400, "damaged"),
    ]
    for (status, found), expected, words in cases:
        assert status == expected and list(found) == ["error"] and words in found["error"], (status, found)
    assert not list(masks.parent.glob("bad*"))


def test_a_subspace_is_not_embedded(client, masks):
    basis = Basis(torch.eye(4), torch.tensor([0.7, 0.2, 0.1, 0.0]))
    subspace = SubspaceMask({FC2: basis}, {FC2: FC2}, {FC2: "ffn"}, 0.05, MaskInfo("sd3", "", method="subspace", version="0.1.0"))
    subspacefile.save(subspace, masks / "subspace.safetensors")
    status, found = get_text(client, f"{masks.name}/subspace.safetensors")
    assert status == 400 and "needs a mask of gates; found a subspace" in found["error"]


def test_bodies_have_a_limit(client):
    status, found = ask(client, "/uniforget/inspect_mask", {"text": "x" * (2 << 20)})
    assert status == 413 and "Expected at most" in found["error"]

    def endless():
        for _ in range(64):
            yield b'{"text": "' + b"x" * 65536

    chunked = {"Content-Type": "application/json"}  # without a length
    status, found = ask(client, "/uniforget/inspect_mask", data=endless(), headers=chunked)
    assert status == 413 and "Expected at most" in found["error"]


def test_another_website_cannot_save(client, masks, mask):
    data = json.dumps({"text": masktext.to_text(mask), "name": f"{masks.name}/foreign"}).encode()
    # What a page may send to another site without asking it first.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        status, found = ask(client, "/uniforget/save_mask", data=data, headers={"Content-Type": kind})
        assert status == 400 and "application/json" in found["error"]
    foreign = {"Content-Type": "application/json", "Origin": "https://example.com"}
    assert ask(client, "/uniforget/save_mask", data=data, headers=foreign)[0] == 403
    # and when it asks first, nothing allows it
    asking = urllib.request.Request(client.url + "/uniforget/save_mask", headers={"Origin": client.url}, method="OPTIONS")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asking, timeout=60) as answer:
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert not list(masks.glob("foreign*"))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8188"])
def test_a_website_that_makes_its_name_point_here_is_not_answered(client, masks, mask, host):
    maskfile.save(mask, masks / "secret.safetensors")
    headers = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
    asked = {
        f"/uniforget/mask_text?name={masks.name}/secret.safetensors": None,
        "/uniforget/inspect_mask": json.dumps({"text": masktext.to_text(mask)}).encode(),
        "/uniforget/save_mask": json.dumps({"text": masktext.to_text(mask), "name": f"{masks.name}/rebound"}).encode(),
    }
    for path, data in asked.items():
        for prefix in ("", "/api"):
            status, found = ask(client, prefix + path, data=data, headers=headers)
            assert status == 403 and list(found) == ["error"] and "--listen" in found["error"]
    assert not list(masks.glob("rebound*"))


def test_an_embedded_mask_runs_and_a_bad_one_is_refused_before_it(client, mask):
    def prompt(text):
        return {
            "1": {"class_type": "UniForgetEmbeddedMask", "inputs": {"mask_text": text}},
            "2": {"class_type": "UniForgetMaskMap", "inputs": {"mask": ["1", 0], "blocks": "", "theme": "light"}},
        }

    outputs = client.run(prompt(masktext.to_text(mask)))["outputs"]
    assert outputs["2"]["uniforget_map"][0]["digest"] == mask.digest()
    assert mask.digest() in outputs["1"]["text"][0]
    with pytest.raises(WorkflowError, match=r"UniForgetEmbeddedMask \(node 1\).*the text is cut off"):
        client.run(prompt(masktext.to_text(mask)[:-1]))
    with pytest.raises(WorkflowError, match=r"UniForgetEmbeddedMask \(node 1\).*this node is empty"):
        client.run(prompt(""))
