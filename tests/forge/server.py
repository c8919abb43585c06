"""A Forge process on the CPU with only our extension beside its own, and its HTTP API."""

import base64
import io
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

from launcher.server import free_port

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    *("--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-version-check", "--always-cpu", "--nowebui"),
    *("--no-hashing", "--no-download-sd-model", "--server-name", "127.0.0.1"),
)


class ForgeServer:
    """Started and stopped as a context.

    Args:
        data: folder for models, extensions and settings; our extension is linked into it.
    """

    def __init__(self, folder, python, data):
        self.folder, self.python, self.data, self.port = folder, python, data, free_port()
        self.log = data / "forge.log"

    def __enter__(self):
        (self.data / "extensions").mkdir(exist_ok=True)
        (self.data / "extensions" / "uniforget").symlink_to(ROOT, target_is_directory=True)
        # With several threads, Forge draws black on the CPU under torch 2.14 (so it does without any extension).
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [self.python, "-W", "ignore", "launch.py", *OPTIONS, "--data-dir", str(self.data), "--port", str(self.port)]
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
            )
        end = time.monotonic() + 600
        while True:
            assert self.process.poll() is None and time.monotonic() < end, f"Forge did not start:\n{self.tail()}"
            try:
                self.call("scripts")
                return self
            except OSError:
                time.sleep(0.5)

    def __exit__(self, *error):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self):
        return self.log.read_text(errors="replace")[-4000:]

    def call(self, path, body=None):
        """What the API answers; a :class:`Refused` with its message for an error."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/sdapi/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
            raise Refused(answer.get("error"), answer.get("message") or answer.get("errors") or answer.get("detail")) from None

    def draw(self, *values, **request):
        """``(pictures as bytes, infotexts)`` of one generation of 64 x 64 pixels with the script's arguments."""
        body = {
            "prompt": "a cat",
            "steps": 2,
            "width": 64,
            "height": 64,
            "cfg_scale": 3,
            "seed": 5,
            "sampler_name": "Euler",
            **request,
        }
        if values:
            body["alwayson_scripts"] = {"UniForget": {"args": list(values)}}
        answer = self.call("img2img" if "init_images" in body else "txt2img", body)
        pictures = [Image.open(io.BytesIO(base64.b64decode(picture))).tobytes() for picture in answer["images"]]
        return pictures, json.loads(answer["info"])["infotexts"]


class Refused(Exception):
    """``Refused(kind of error, message)``."""
