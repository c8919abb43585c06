"""What the browser asks ComfyUI's server for: a mask as text, what a text holds, and to save it as a file.

Texts and names come from pages and workflows of strangers. Another website cannot post here: ComfyUI refuses requests whose Origin is
not its Host while it listens on this machine only, and a body that must be JSON makes browsers ask first, which ComfyUI never allows.
"""

import asyncio
import json
import threading

from aiohttp import web

from ..uniforget.errors import FamilyError, MaskFileMissingError, SettingError, TooLargeError, UniForgetError
from ..uniforget.mask import file as maskfile
from ..uniforget.mask import subspacefile
from ..uniforget.mask import text as masktext
from ..uniforget.model.detect import family
from .maskio import check_name, find_mask, target_path

# A name and JSON's own characters beside the text.
MOST_BODY = masktext.MAX_TEXT + (64 << 10)
LONGEST_NAME = 1000
# Two saves at once must not choose the same number.
_saving = threading.Lock()


def register_routes():
    """Adds the routes to ComfyUI's server, where there is one."""
    from server import PromptServer  # ComfyUI's; only there while it serves

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get("/uniforget/mask_text")(mask_text)
        server.routes.post("/uniforget/inspect_mask")(inspect_mask)
        server.routes.post("/uniforget/save_mask")(save_mask)


async def mask_text(request):
    """GET ``?name=``: ``{"text", "summary"}`` of a mask in models/uniforget/."""
    return await _answer(_text_of, request.query.get("name", ""))


async def inspect_mask(request):
    """POST ``{"text"}``: ``{"summary"}``, what the text holds."""
    return await _answer(lambda body: {"summary": summary(masktext.from_text(body["text"]))}, request)


async def save_mask(request):
    """POST ``{"text", "name"}``: ``{"name", "summary"}``; saves it under the next free number, as Save Memorization Mask does."""
    return await _answer(_save, request)


def _text_of(name):
    if len(name) > LONGEST_NAME:
        raise SettingError(f"Setting 'name': expected at most {LONGEST_NAME} characters; found {len(name)}.")
    path = find_mask(name)
    if subspacefile.is_subspace(path):  # which can have gigabytes: not read to be refused
        masktext.refuse_subspace()
    mask = maskfile.load(path)
    return {"text": masktext.to_text(mask), "summary": summary(mask)}


def _save(body):
    name = body.get("name")
    if not isinstance(name, str) or not 0 < len(name.strip()) <= LONGEST_NAME:
        raise SettingError(
            f"Setting 'name': expected a name of 1 to {LONGEST_NAME} characters, such as 'portraits'; found {len(str(name))}."
        )
    check_name(name)
    mask = masktext.from_text(body["text"])
    with _saving:
        path = target_path(name, overwrite=False)
        maskfile.save(mask, path)
    parts = name.strip().replace("\\", "/").split("/")[:-1]
    return {"name": "/".join([*parts, path.name]), "summary": summary(mask)}


def summary(mask):
    """What the node shows of a mask, as JSON."""
    try:
        title = family(mask.info.family).title
    except FamilyError:
        title = mask.info.family
    return {
        "digest": mask.digest(),
        "family": title,
        "hard": mask.hard,
        "off": {kind: round(share, 5) for kind, share in mask.sparsity().items()},
        "gates": sum(gates.numel() for gates in mask.gates.values()),
        "preset": mask.info.preset,
        "base_name": mask.info.base_name,
    }


async def _answer(work, given):
    """JSON of what `work` makes of a value or of a request's JSON; ``{"error"}`` in clear words when it refuses."""
    try:
        if isinstance(given, web.Request):
            given = await _body(given)
        # Unpacking and writing must not hold up the server.
        found = await asyncio.get_running_loop().run_in_executor(None, work, given)
    except UniForgetError as error:
        status = 404 if isinstance(error, MaskFileMissingError) else 413 if isinstance(error, TooLargeError) else 400
        return web.json_response({"error": str(error)}, status=status)
    except OSError as error:  # a name that the system refuses
        return web.json_response({"error": f"{error.strerror or error}. Choose another name."}, status=400)
    return web.json_response(found)


async def _body(request):
    """The JSON object of a request that holds a mask's text."""
    if request.content_type != "application/json":
        raise SettingError(f"Expected a body of type application/json; found {request.content_type[:60]!r}.")
    data = await request.content.read(MOST_BODY + 1) if (request.content_length or 0) <= MOST_BODY else None
    while data is not None and len(data) <= MOST_BODY and not request.content.at_eof():
        data += await request.content.read(MOST_BODY + 1 - len(data))
    if data is None or len(data) > MOST_BODY:
        raise TooLargeError(f"Expected at most {MOST_BODY} bytes. This is no mask that UniForget embedded.")
    try:
        body = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SettingError(f"The body is no JSON ({type(error).__name__}).") from None
    if not isinstance(body, dict) or not isinstance(body.get("text"), str):
        raise SettingError("Expected a JSON object with the mask's text.")
    return body
