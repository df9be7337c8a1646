"""The agent with shorter waits: `python hasty.py agent.pipeline.degrading:RETRY_FIRST_S=2 … -- run --config …`.

What takes minutes on a device (the wait before a failed accelerator is tried again, the patience with one that hangs) is set
in core's process before it starts: a constant of a module, or the default of a parameter (`module:function.parameter`).
Its children are the ordinary ones.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any


def main() -> None:
    end = sys.argv.index("--")
    for setting in sys.argv[1:end]:
        place, value = setting.split("=")
        module, name = place.split(":")
        shorten(importlib.import_module(module), name.split("."), float(value))
    sys.argv[1:] = sys.argv[end + 1 :]
    from agent.__main__ import main as holdfast

    holdfast()


def shorten(found: Any, names: list[str], value: float) -> None:
    for name in names[:-1]:
        found = getattr(found, name)
    last = names[-1]
    if not inspect.isfunction(found):
        before = getattr(found, last)
        assert isinstance(before, float | int), f"{last} is no number of {found} any more"
        setattr(found, last, type(before)(value))
        return
    parameters = inspect.signature(found).parameters
    if parameters[last].kind is inspect.Parameter.KEYWORD_ONLY:
        found.__kwdefaults__ = {**found.__kwdefaults__, last: value}
        return
    optional = [
        name
        for name, each in parameters.items()
        if each.default is not each.empty and each.kind is not each.KEYWORD_ONLY
    ]
    defaults = dict(zip(optional, found.__defaults__, strict=True))
    assert last in defaults, f"{found} has no default for {last} any more"
    found.__defaults__ = tuple({**defaults, last: value}.values())


if __name__ == "__main__":
    main()
