"""A folder per artifact format, each with one TOOLCHAIN: the directory is the registry; imports sources and what is
below them, never another toolchain."""

import importlib
import pkgutil

from enginehouse.optimize.artifact import Toolchain


def toolchains() -> dict[str, Toolchain]:
    """Every toolchain in this folder by the format it makes; importing one is cheap, building with it is not."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {module.TOOLCHAIN.format: module.TOOLCHAIN for module in modules}
