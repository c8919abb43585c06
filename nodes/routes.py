"""What the browser asks ComfyUI's server for: a mask as text, what a text holds, and to save it as a file.

Texts and names come from pages and workflows of strangers. Other websites are kept out in three ways: ComfyUI refuses requests whose
Origin is not their Host, where the Host is this machine; a body that must be JSON makes browsers ask first, which nothing here allows;
and a website that makes its own name point to this machine (DNS rebinding), for which both of that is no obstacle, is told apart by the
Host that it asks for (:func:`expected_host`).
"""

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web
from comfy.cli_args import args

from ..uniforget import untrusted
from ..uniforget.errors import FamilyError, MaskFileMissingError, SettingError, TooLargeError, UniForgetError
from ..uniforget.mask import file as maskfile
from ..uniforget.mask import files, subspacefile
from ..uniforget.mask import text as masktext
from ..uniforget.model.detect import family
from .guard import BusyError, aside, told
from .maskio import check_name, find_mask, saving_as

# A name and JSON's own characters beside the text.
MOST_BODY = masktext.MAX_TEXT + (64 << 10)
LONGEST_NAME = 1000


def register_routes():
    """Adds the routes to ComfyUI's server, where there is one."""
    from server import PromptServer  # ComfyUI's; only there while it serves

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.get("/uniforget/mask_text")(mask_text)
        server.routes.post("/uniforget/inspect_mask")(inspect_mask)
        server.routes.post("/uniforget/save_mask")(save_mask)


def expected_host(host):
    """Whether a request that asks for `host` (name and port) can come from somebody who opened this server's own page.

    An address, or "localhost", always can: a name is what a website needs to have a browser take it for its own server. Other names are
    expected where ComfyUI was told to be reached from elsewhere (``--listen`` on other addresses, ``--enable-cors-header``), and there it
    is up to whoever set that up who can reach it.
    """
    if args.enable_cors_header or not all(_is_here(address.strip()) for address in args.listen.split(",")):
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _is_here(address):
    """Whether ComfyUI listens at this address to this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


async def mask_text(request):
    """GET ``?name=``: ``{"text", "summary"}`` of a mask in models/uniforget/."""
    return await _answer(request, _text_of, lambda: request.query.get("name", ""))


async def inspect_mask(request):
    """POST ``{"text"}``: ``{"summary"}``, what the text holds."""
    return await _answer(request, lambda body: {"summary": summary(masktext.from_text(body["text"]))})


async def save_mask(request):
    """POST ``{"text", "name"}``: ``{"name", "summary"}``; saves it under the next free number, as Save Memorization Mask does."""
    return await _answer(request, _save)


def _text_of(name):
    if len(name) > LONGEST_NAME:
        raise SettingError(f"Setting 'name': expected at most {LONGEST_NAME} characters; found {len(name)}.")
    path = find_mask(name)
    if subspacefile.is_subspace(path):  # which can have gigabytes: not read to be refused
        files.refuse_subspace("Embed mask in workflow")
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
    with saving_as(name) as path:
        maskfile.save(mask, path, overwrite=False)
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


async def _answer(request, work, given=None):
    """JSON of what `work` makes of ``given()``, or of the request's JSON; ``{"error"}`` in clear words when it refuses."""
    host = request.headers.get("Host", "")
    if not expected_host(host):
        return _refused(
            403,
            SettingError(
                f"Expected this page under an address such as 127.0.0.1, or localhost; found {host!r:.100}. Open ComfyUI there, or start it "
                "with --listen if it is meant to be reached by this name."
            ),
        )
    try:
        return web.json_response(await aside(work, given() if given else await _body(request)))
    except UniForgetError as error:
        kinds = ((MaskFileMissingError, 404), (TooLargeError, 413), (BusyError, 503))
        return _refused(next((status for kind, status in kinds if isinstance(error, kind)), 400), error)
    except OSError as error:  # a name that the system refuses
        return _refused(400, SettingError(f"{error.strerror or error}. Choose another name."))
    except Exception as error:
        return _refused(500, error)


def _refused(status, error):
    return web.json_response({"error": told(error)}, status=status)


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
        body = untrusted.parse_json(data, MOST_BODY)
    except ValueError as error:
        raise SettingError(f"The body is no JSON ({type(error).__name__}).") from None
    if not isinstance(body, dict) or not isinstance(body.get("text"), str):
        raise SettingError("Expected a JSON object with the mask's text.")
    return body
