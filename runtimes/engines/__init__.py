"""One file per runtime; each exports one RUNTIME. The directory is the registry."""

import importlib
import pkgutil

from enginehouse.runtimes.contract import Local


def runtimes() -> dict[str, Local]:
    """Every runtime in this folder by name, installed or not; importing one never imports its engine."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {module.RUNTIME.name: module.RUNTIME for module in modules}
