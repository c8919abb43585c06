"""The only places that import a host: one translator each for ComfyUI, diffusers and the web UIs."""
