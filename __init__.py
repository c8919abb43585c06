"""UniForget for ComfyUI: make a local model forget what it memorized, without naming it.

ComfyUI imports this file; every other host finds its own entry point and this one does nothing there.
"""

import importlib.util

# Only the probe is guarded: an error in our own import must surface.
if importlib.util.find_spec("comfy_api") is not None and __package__:
    from comfy_api.latest import ComfyExtension

    from .nodes import all_nodes
    from .nodes.maskio import register_folder
    from .nodes.routes import register_routes

    WEB_DIRECTORY = "./web"

    class UniForgetExtension(ComfyExtension):
        """Hands ComfyUI the pack's nodes."""

        async def get_node_list(self):
            return all_nodes()

    async def comfy_entrypoint():
        register_folder()
        register_routes()
        return UniForgetExtension()
