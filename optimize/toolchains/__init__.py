"""One file per artifact format; each exports one TOOLCHAIN. The directory is the registry."""

import importlib
import pkgutil

from enginehouse.optimize.artifact import Toolchain


def toolchains() -> dict[str, Toolchain]:
    """Every toolchain in this folder by the format it makes; importing one is cheap, building with it is not."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {module.TOOLCHAIN.format: module.TOOLCHAIN for module in modules}
