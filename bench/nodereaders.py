"""Readers of ComfyUI's nodes, with damaged inputs for them, in a process that is ComfyUI's. See :mod:`bench.attack`.

What checks a graph's values before it runs, and what answers the browser, may refuse, and may not fail: a message that asks to report a
fault counts as a foreign exception.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

from launcher import inside

from . import mutate, seeds
from .feed import Reader

REPORT = "please report"
Random = random.Random


class Foreign(Exception):
    """What a user was told was not in UniForget's own words."""


def group(folder: Path, outside: Path) -> tuple[list[Reader], type[Exception]]:
    """The readers that belong to ComfyUI."""
    inside.load(folder)
    import torch
    from aiohttp import StreamReader
    from aiohttp.test_utils import make_mocked_request
    from uniforget_pack.nodes import all_nodes, maskio, routes
    from uniforget_pack.uniforget.errors import UniForgetError
    from uniforget_pack.uniforget.mask import file as maskfile
    from uniforget_pack.uniforget.mask import text as masktext
    from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo

    info = MaskInfo("sd3", "", "<img src=x onerror=alert(1)>", extra={"note": "a note"})
    gates = {f"joint_blocks.{i}.x_block.mlp.fc2": (torch.arange(64) % 3 > 0).float() for i in range(3)}
    one = GateMask(gates, dict.fromkeys(gates, "ffn"), info)
    masks = folder / "models" / "uniforget"
    masks.mkdir(parents=True, exist_ok=True)
    maskfile.save(one, masks / "m.safetensors")
    (folder / "models" / "checkpoints" / "c.safetensors").write_bytes(maskfile.dumps(one))
    packed, text = maskfile.dumps(one), masktext.to_text(one)
    loop = asyncio.new_event_loop()
    kinds = [kind for kind in all_nodes() if "validate_inputs" in vars(kind)]
    names = (
        "m.safetensors",
        "a/m.safetensors",
        "checkpoints/c.safetensors",
        "../../../outside/secret.txt",
        "my_mask",
        "client/portraits",
    )

    def wrap(content: bytes) -> str:
        return text[: len("uniforget-mask:")] + base64.b64encode(content).decode()

    def make_value(rng: Random) -> tuple[int, list[Any]]:
        def value() -> Any:
            seed = rng.choice((*names, *names, text, mutate.hostile(rng)))
            return seed if rng.random() < 0.2 else mutate.inside(rng, seed) if isinstance(seed, str) else seed

        return rng.randrange(len(kinds)), [value() for _ in range(4)]

    def read_value(given: tuple[int, list[Any]], at: Path) -> None:
        """As ComfyUI asks before it runs a graph."""
        kind = kinds[given[0]]
        code = kind.validate_inputs.__func__.__code__
        wanted = code.co_varnames[1 : code.co_argcount]
        found = kind.validate_inputs(**dict(zip(wanted, given[1], strict=False)))
        found = loop.run_until_complete(found) if asyncio.iscoroutine(found) else found
        if found is not True and (not isinstance(found, str) or REPORT in found):
            raise Foreign(f"{kind.__name__}{given[1]!r:.300}: {found!r:.300}")

    def saved(name: Any) -> Path:
        with maskio.saving_as(name) as path:
            return path

    def make_name(rng: Random) -> Any:
        return rng.choice((mutate.hostile(rng), mutate.inside(rng, rng.choice(names))))

    def read_name(given: Any, at: Path) -> None:
        """Where files are looked for, and saved; both must be inside their folders."""
        for find in (maskio.find_mask, saved):
            try:
                path = Path(find(given))
            except UniForgetError:
                continue
            if masks.resolve() not in path.resolve().parents:
                (outside / "leaked").touch()
        maskio.check_mask(given)

    def make_request(rng: Random) -> tuple[str, dict[str, str], bytes]:
        body: Any = {
            "text": mutate.mask_text(rng, text, packed, wrap) if rng.random() < 0.6 else text,
            "name": str(make_name(rng)),
        }
        kind = rng.choice(("inspect_mask", "save_mask", "save_mask", "mask_text"))
        sent = mutate.encoded(rng, mutate.tree(rng, body) if rng.random() < 0.5 else body)
        headers = {
            "Host": rng.choice(("127.0.0.1:8188", "127.0.0.1:8188", "localhost", "evil.example", str(mutate.hostile(rng))))
        }
        headers |= {"Content-Type": rng.choice(("application/json",) * 5 + ("text/plain", "", "application/json; charset=x"))}
        if rng.random() < 0.1:
            headers |= {"Content-Length": rng.choice(("0", "-1", "9" * 30, "x"))}
        return kind, headers, mutate.bits(rng, sent) if rng.random() < 0.1 else sent

    def read_request(given: tuple[str, dict[str, str], bytes], at: Path) -> None:
        """As ComfyUI's server hands it on: it takes no header with controls, and no length that is none."""
        kind, headers, body = given
        if (
            any(not value.isprintable() or not value.isascii() for value in headers.values())
            or not headers.get("Content-Length", "0").isdigit()
        ):
            return

        async def ask() -> Any:
            content = StreamReader(mock.Mock(_reading_paused=False), 1 << 16, loop=loop)
            content.feed_data(body)
            content.feed_eof()
            path = f"/uniforget/{kind}" + (f"?name={body[:200].hex()}" if kind == "mask_text" else "")
            request = make_mocked_request("GET" if kind == "mask_text" else "POST", path, headers=headers, payload=content)
            return await getattr(routes, kind)(request)

        answer = loop.run_until_complete(ask())
        said = json.loads(answer.text)
        if answer.status == 500 or REPORT in str(said.get("error", "")):
            raise Foreign(f"{kind} {headers}: {said!r:.300}")

    def bombs() -> list[tuple[str, dict[str, str], bytes]]:
        texts = seeds.text_bombs(text, packed, wrap)
        headers = {"Host": "127.0.0.1", "Content-Type": "application/json"}
        return [("inspect_mask", headers, json.dumps({"text": each}).encode()) for each in texts]

    readers = [
        Reader("node value", 1000, make_value, read_value),
        Reader("node name", 600, make_name, read_name),
        Reader("request", 800, make_request, read_request, bombs),
    ]
    return readers, UniForgetError
