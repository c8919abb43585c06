"""No reader takes more than 300 MB or five seconds, whatever a stranger's file says: the worst that each limit lets through."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from uniforget import untrusted
from uniforget.checkpoint import safefile
from uniforget.errors import ModelFileError

ROOT = Path(__file__).resolve().parents[2]
SECONDS, MEGABYTES = 5, 300
# One process of its own for all, because importing torch takes longer than any of this.
CODE = """
import base64, json, pathlib, re, sys, time, zlib
import numpy as np
import torch
from safetensors.numpy import save
from uniforget import prompts, untrusted
from uniforget.checkpoint import compactfile, safefile
from uniforget.cli import files as cli
from uniforget.errors import UniForgetError
from uniforget.mask import file as maskfile, files, subspacefile, text as masktext
from uniforget.mask.info import MaskInfo, GateMask

folder = pathlib.Path(sys.argv[1])

def memory(which):
    # in MB: "VmRSS" now, "VmHWM" at most
    return int(re.search(which + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

def measure(name, reader, path):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, began = memory("VmRSS"), time.process_time()
    try:
        reader(path)
        told = "read"
    except UniForgetError as error:
        told = type(error).__name__
    print(json.dumps([name, told, round(time.process_time() - began, 2), round(memory('VmHWM') - before)]), flush=True)

def put(name, content):
    path = folder / name
    path.write_bytes(content)
    return path

def header(text, rest=b""):
    return len(text).to_bytes(8, "little") + text + rest

def tensors(count, name="t{}", shape="[0]"):
    entry = '"' + name + '":{{"dtype":"F16","shape":' + shape + ',"data_offsets":[0,0]}}'
    return "{" + ",".join(entry.format(i) for i in range(count)) + "}"

most = prompts.MAX_BYTES
for name, content in (
    ("line ends", b"\\n" * most),
    ("half a million lines", b"a\\n\\n" * (prompts.MAX_LINES // 2 - 1)),
    ("one character of four bytes", "\\U0001f600".encode() + b"a b c d e f g " * (most // 15)),
    ("different prompts", b"\\n".join(b"a picture of number %d %s" % (i, b"x" * 120) for i in range(99_999))),
    ("objects", b'{"prompt":"a chair"}\\n' * 400_000),
    ("deep", b"[" * most),
    ("no UTF-8", b"\\n" * (most - 1) + b"\\xff"),
):
    measure(f"prompts: {name}", prompts.read_prompts, put("p.txt", content))

for name, content in (
    ("tensors of all kinds", header(tensors(16_383, "{0}.x" + "y" * 240).encode())),
    ("many tensors", header(tensors(74_000).encode())),
    ("names like a model's", header(tensors(16_383, "model.diffusion_model.joint_blocks.{}.x_block.mlp.fc2.weight").encode())),
    ("more than allowed", header(tensors(90_000, "t" * 40 + "{}").encode())),
    ("larger than allowed", header(b'{"a":"' + b" " * (20 << 20) + b'"}')),
    ("lists", header(b'{"a":[' + b"[]," * 2_700_000 + b"[]]}")),
    ("deep", header(b'{"a":' + b"[" * 8_000_000)),
    ("long name", header(b'{"' + b"0" * 8_000_000 + b'":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}')),
    ("long metadata", header(b'{"__metadata__":{"uniforget":"' + b"[" * 8_000_000 + b'"}}')),
):
    path = put("h.safetensors", content)
    measure(f"header: {name}", cli.inspect, path)
    measure(f"header as a mask: {name}", files.load, path)

note = {"prefix": "", "cuts": {}, "heads": {}, "hidden": {}}
bits = base64.b64encode(b"\\xff" * 32768).decode()
names = [f"b.{i}" for i in range(140)]
note["cuts"] = {name: {"size": [1 << 18, 1], "rows": bits} for name in names}
shapes = {f"{name}.weight": {"dtype": "F16", "shape": [1 << 18, 1], "data_offsets": [i << 19, (i + 1) << 19]} for i, name in enumerate(names)}
for name, count in (("all rows told", 30), ("more rows than allowed", 140)):
    cuts = {**note, "cuts": {key: note["cuts"][key] for key in names[:count]}}
    text = json.dumps({"__metadata__": {"uniforget_compact": json.dumps(cuts)}, **{f"{n}.weight": shapes[f"{n}.weight"] for n in names[:count]}}).encode()
    path = put("c.safetensors", header(text) + bytes(count << 19))
    measure(f"compact: {name}", lambda path: compactfile.read(safefile.read_header(path)), path)

about = {"format": 1, "digest": "0" * 10, **MaskInfo("sd3", "").stored()}
def mask(table, gates, key="bits"):
    parts = {"sites": np.frombuffer(zlib.compress(table, 9), np.uint8), key: np.frombuffer(zlib.compress(gates, 9), np.uint8)}
    return save(parts, {maskfile.MARK: json.dumps(about)})
million = b"".join(b"ffn 1048576 joint_blocks.%d.x_block.mlp.fc2\\n" % i for i in range(16))
long = b"".join(b"ffn 1 %d.%s\\n" % (i, b"x" * 190) for i in range(8192))
for name, content in (
    ("all gates", mask(million, bytes(2 << 20))),
    ("all gates, soft", mask(million, bytes(16 << 20), "bytes")),
    ("bomb", mask(million, bytes(64 << 20))),
    ("long names", mask(long, bytes(1024))),
    ("bomb of names", mask(b"x" * (64 << 20), b"")),
):
    measure(f"mask: {name}", maskfile.load, put("m.safetensors", content))
    measure(f"text: {name}", masktext.from_text, masktext.MARK + base64.b64encode(content).decode())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures as Linux does")
def test_every_reader_stays_within_its_budget(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(CODE), str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(found) == 37 and {told for _, told, _, _ in found} > {
        "read",
        "PromptFileError",
        "ModelFileError",
        "BadContentsError",
    }
    over = [line for line in found if line[2] > SECONDS or line[3] > MEGABYTES]
    assert not over


@pytest.mark.parametrize(("name", "told"), [("a\nb", "found"), ("\x1b[2J", "control"), ("x" * 257, "at most 256 characters")])
def test_names_of_tensors_are_checked_when_they_are_read(tmp_path, name, told):
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=f"as the name of a tensor, expected .*{told}"):
        safefile.read_header(tmp_path / "x.safetensors")


def test_nothing_is_written_that_would_not_be_read(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    header = safefile.read_header(tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match="8,388,608 is the most that is read"):
        safefile.header_bytes(header, {"note": "x" * untrusted.HEADER})
