"""Errors of the launcher."""


class LauncherError(Exception):
    """Something the user can act on; shown as it is, without a traceback."""


class ServerError(LauncherError):
    """ComfyUI did not start, stopped, or could not be reached."""


class WorkflowError(LauncherError):
    """A workflow cannot be turned into a prompt, was refused by ComfyUI, or failed while running."""
