"""ComfyUI's HTTP API: queue a prompt, follow it, read what it made."""

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from .errors import ServerError, WorkflowError

Event = Callable[[str, dict[str, Any]], None]
FINISHED = {"execution_success", "execution_error", "execution_interrupted"}


class ComfyClient:
    """A client of one ComfyUI server.

    Args:
        url: such as ``http://127.0.0.1:8188``.
        alive: called while waiting; raises when the server is known to be gone.
    """

    def __init__(self, url: str, alive: Callable[[], None] = lambda: None):
        self.url = url.rstrip("/")
        self.alive = alive
        # localhost must not be asked through a proxy
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def request(self, path: str, body: Any = None, timeout: float = 60) -> bytes:
        """Answer of a GET, or of a POST when there is a body (sent as JSON).

        Raises:
            ServerError: no connection, or an HTTP error; its text is in ``body`` of the exception.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} if data else {})
        try:
            with self._open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise HTTPError(path, error.code, error.read()) from None
        except OSError as error:
            self.alive()
            raise ServerError(f"ComfyUI at {self.url} does not answer ({getattr(error, 'reason', error)}).") from None

    def get(self, path: str) -> Any:
        """JSON of a GET."""
        return json.loads(self.request(path))

    def object_info(self) -> dict[str, Any]:
        """All nodes of this server."""
        return self.get("/object_info")

    def queue(self, prompt: dict[str, Any], workflow: dict[str, Any] | None = None, client_id: str = "") -> str:
        """Queues a prompt; returns its id.

        Raises:
            WorkflowError: ComfyUI refused it; says which node and input.
        """
        body: dict[str, Any] = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            answer = json.loads(self.request("/prompt", body))
        except HTTPError as error:
            raise WorkflowError(f"ComfyUI refused the workflow.\n{_refusal(error.body, prompt)}") from None
        if answer.get("node_errors"):
            raise WorkflowError(f"ComfyUI refused a part of the workflow.\n{_refusal(json.dumps(answer).encode(), prompt)}")
        return answer["prompt_id"]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """History entry (``outputs``, ``status``) of a prompt that has ended, else None."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """History entry of a prompt once it has ended, well or not.

        Raises:
            ServerError: it did not end in time.
        """
        end = time.monotonic() + timeout
        while (entry := self.history(prompt_id)) is None:
            self.alive()
            if time.monotonic() > end:
                raise ServerError(f"The prompt {prompt_id} did not end within {timeout:.0f} s.")
            time.sleep(0.1)
        return entry

    def run(self, prompt: dict[str, Any], timeout: float = 600) -> dict[str, Any]:
        """Queues, waits, and returns the history entry of a prompt that went well.

        Raises:
            WorkflowError: it was refused or failed.
        """
        return succeeded(self.wait(self.queue(prompt), timeout))

    def follow(self, prompt: dict[str, Any], workflow: dict[str, Any] | None, on_event: Event) -> dict[str, Any]:
        """As ``run``, without a time limit, with each message of the websocket handed to ``on_event(type, data)``."""
        return succeeded(asyncio.run(self._follow(prompt, workflow, on_event)))

    async def _follow(self, prompt: dict[str, Any], workflow: dict[str, Any] | None, on_event: Event) -> dict[str, Any]:
        import aiohttp  # ComfyUI needs it, so the environment that runs ComfyUI has it

        client_id = uuid.uuid4().hex
        socket = f"{self.url}/ws?clientId={client_id}"
        # previews are pictures of any size: no limit on a message
        async with aiohttp.ClientSession() as session, session.ws_connect(socket, max_msg_size=0) as ws:
            prompt_id = self.queue(prompt, workflow, client_id)
            while True:
                try:
                    message = await ws.receive(timeout=5)
                except asyncio.TimeoutError:
                    message = None
                if message is not None and message.type is aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    data = event.get("data") or {}
                    if data.get("prompt_id") in (None, prompt_id):
                        on_event(event["type"], data)
                        if event["type"] not in FINISHED:
                            continue
                elif message is not None and message.type is aiohttp.WSMsgType.BINARY:
                    continue
                # ended, silent for a while, or the socket closed: the history has the last word
                self.alive()
                if (entry := self.history(prompt_id)) is not None:
                    return entry
                if ws.closed:
                    await asyncio.sleep(0.5)

    def view(self, image: dict[str, str]) -> bytes:
        """Bytes of a picture named in a node's outputs (``filename``, ``subfolder``, ``type``)."""
        query = urllib.parse.urlencode({key: image.get(key, "") for key in ("filename", "subfolder", "type")})
        return self.request(f"/view?{query}")

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Cancels what runs now, or only the prompt named."""
        self.request("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def queue_state(self) -> dict[str, Any]:
        """``queue_running`` and ``queue_pending``."""
        return self.get("/queue")


class HTTPError(ServerError):
    """ComfyUI answered with an error; ``status`` and ``body`` say which."""

    def __init__(self, path: str, status: int, body: bytes):
        super().__init__(f"ComfyUI answered {path} with HTTP {status}: {body[:2000].decode(errors='replace')}")
        self.status = status
        self.body = body


def succeeded(entry: dict[str, Any]) -> dict[str, Any]:
    """The history entry, if its prompt went well.

    Raises:
        WorkflowError: it failed or was cancelled; says in which node and why.
    """
    status = entry.get("status") or {}
    messages = dict(status.get("messages") or [])
    if failed := messages.get("execution_error"):
        # the last calls say where; ComfyUI's log has the whole
        trace = "".join(failed.get("traceback") or [])
        trace = "\n".join([line for line in trace.splitlines() if line.strip(" ^~")][-8:])
        where = f"{failed.get('node_type')} (node {failed.get('node_id')})"
        raise WorkflowError(
            f"{where} failed: {failed.get('exception_type')}: {failed.get('exception_message', '').strip()}\n{trace}"
        )
    if stopped := messages.get("execution_interrupted"):
        raise WorkflowError(f"Cancelled in {stopped.get('node_type')} (node {stopped.get('node_id')}).")
    if status.get("status_str") != "success":
        raise WorkflowError(f"The workflow did not end well: ComfyUI reports {status!r}.")
    return entry


def _refusal(body: bytes, prompt: dict[str, Any]) -> str:
    """ComfyUI's validation errors, one line each."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body[:2000].decode(errors="replace")
    lines = []
    for node_id, node in (answer.get("node_errors") or {}).items():
        kind = prompt.get(node_id, {}).get("class_type", "?")
        lines += [f"  {kind} (node {node_id}): {e.get('message')}: {e.get('details')}" for e in node.get("errors", [])]
    error = answer.get("error")
    if not lines and error:
        lines.append(f"  {error.get('message')}: {error.get('details')}" if isinstance(error, dict) else f"  {error}")
    return "\n".join(lines) or body[:2000].decode(errors="replace")
