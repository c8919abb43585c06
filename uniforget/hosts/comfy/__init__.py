"""ComfyUI: masks through its own weight patching, learned and sampled with its own machinery."""
