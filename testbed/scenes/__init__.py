"""The next testbed: scenes and photographs whose memorized captions have another answer. Replaces the modules above it once trained."""
