"""What stands between strangers' graphs and ComfyUI: errors in clear words only, and slow checks beside the server's work."""

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import comfy.model_management

from ..uniforget import untrusted
from ..uniforget.errors import UniForgetError

# How ComfyUI itself stops a node, and what it has advice of its own for.
PASSED_ON = (comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION, UniForgetError)
# Checks that may wait for the one that runs: a page that asks for more is a broken or a hostile one.
MOST_WAITING = 32

_worker = ThreadPoolExecutor(1, "uniforget")
_waiting = threading.BoundedSemaphore(MOST_WAITING)


class BusyError(UniForgetError):
    """Too many checks are waiting already."""


async def aside(work, *given):
    """``work(*given)`` in a thread of its own, one after the other, while the server goes on.

    Raises:
        BusyError: too many are waiting. And whatever `work` raises.
    """
    if not _waiting.acquire(blocking=False):
        raise BusyError(f"UniForget is checking {MOST_WAITING} masks already. Wait a little, and try again.")
    try:
        return await asyncio.get_running_loop().run_in_executor(_worker, work, *given)
    finally:
        _waiting.release()


def told(error):
    """What a user is told of an error, made safe for the page."""
    return untrusted.told(error, "ComfyUI's log")


def guarded(node):
    """`node`, a class, whose execute raises nothing but our errors (and ComfyUI's own), in words that are safe for the page."""
    execute = node.execute.__func__
    if not hasattr(execute, "__wrapped__"):

        @functools.wraps(execute)
        def run(cls, *args, **values):
            try:
                return execute(cls, *args, **values)
            except PASSED_ON as error:
                if isinstance(error, UniForgetError):
                    error.args = (told(error),)
                raise
            except Exception as error:
                raise UniForgetError(told(error)) from error

        node.execute = classmethod(run)
    return node
