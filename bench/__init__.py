"""Benchmarks: ``python -m bench.<name> --json FILE``. What they time is no test, and no test times anything."""
