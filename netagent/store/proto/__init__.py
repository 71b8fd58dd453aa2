"""Messages of etcd's v3 API, generated from etcd.proto beside this file (`make proto`).

protobuf imports its implementation in Python even where the one in C is in use, which costs 20 ms and 0.8 MiB at
every start. Here it is imported lazily, so that it is loaded when something touches it, and nothing does.
"""

from __future__ import annotations

import importlib.util
import sys


def _lazily(package: str, name: str) -> None:
    """The standard library's recipe of a lazy import (importlib.util.LazyLoader), for a submodule."""
    full = f"{package}.{name}"
    spec = None if full in sys.modules else importlib.util.find_spec(full)
    if spec is None or spec.loader is None:
        return
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[full] = module
    setattr(sys.modules[package], name, module)  # else `from package import name` would look into it
    spec.loader.exec_module(module)


_lazily("google.protobuf.internal", "python_message")
