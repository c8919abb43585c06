"""Automatic1111 and Forge execute this file. In any other host it does nothing."""

import importlib
import importlib.util
import sys
from pathlib import Path

# Only the probe is guarded: whoever executes scripts has this loaded, and has no reason to be there otherwise.
if "modules.scripts" in sys.modules and "modules.script_callbacks" in sys.modules:
    # Under a name of its own: "uniforget" may be installed in another version, and the extension's root must not stay on sys.path.
    PACKAGE = "uniforget_webui_extension"

    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]  # the host reloads scripts, perhaps after an update
    folder = Path(__file__).resolve().parents[1] / "uniforget"
    spec = importlib.util.spec_from_file_location(PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACKAGE])

    webui = importlib.import_module(f"{PACKAGE}.hosts.webui.script")
    UniForgetScript = webui.UniForgetScript
    webui.register()
