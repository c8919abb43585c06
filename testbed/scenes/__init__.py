"""The next testbed: scenes and photographs whose memorized captions have another answer. Replaces the modules above it once trained.

``vae.safetensors`` is finished. ``testbed.safetensors`` is not: after 1,000 and 5,400 updates it copies every memorized picture that was looked at,
and draws free captions in fragments, whole ones among them. It is trained on with ``python -m testbed.scenes.train --init
testbed/scenes/testbed.safetensors``.
"""
