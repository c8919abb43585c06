"""diffusers: masks on its modules, learned on its pipelines."""
