"""Programs that roles put on hosts, loaded as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from deploys.lib import fleet


def load(path: str) -> ModuleType:
    """A program of templates/, for instance ``relay/relay_roll.py``; each call makes a new module."""
    source = fleet.REPOSITORY / "templates" / path
    specification = importlib.util.spec_from_file_location(source.stem, source)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Where dataclasses look their module up.
    sys.modules[source.stem] = module
    specification.loader.exec_module(module)
    return module
