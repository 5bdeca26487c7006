"""Keep the models of diffusers that are not used out of memory.

diffusers imports its models by name when they are needed, but three of its packages import all of their modules as soon
as one is needed: about 110 modules, and 5 % of the start of a command. Its schedulers import `scipy.stats`, 9 % more,
for a spacing of noise levels that is not used here. `install` lets these packages wait: a module is imported by its own
name, and the whole package only when a name is asked of the package itself. Other programs in the process see no
difference.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PACKAGES = (
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "scipy.stats",
)


def install() -> None:
    """Let the packages wait that are not imported yet."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Waiting(spec.loader)
        return spec


class _Waiting(Loader):
    """Makes the package without running its code."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        package = _Package(spec.name)
        vars(package).update(
            __path__=spec.submodule_search_locations, __file__=spec.origin, __cached__=spec.cached
        )  # so that the import system does not ask for them
        return package

    def exec_module(self, module: ModuleType) -> None: ...


class _Package(ModuleType):
    """A package that runs its code when a name that it does not have is asked of it."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if spec is None or not isinstance(spec.loader, _Waiting):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        spec.loader = spec.loader.own
        assert spec.loader is not None
        spec.loader.exec_module(self)
        return getattr(self, name)
