# SPDX-License-Identifier: Apache-2.0
"""Keep Python's garbage collector away from the objects of libraries and models.

Imports and a model make up to a million objects that stay. The collector looks through all of them
again and again meanwhile, which is a fifth of the time of the imports, and in each full collection
later.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Do not collect garbage in the body; a collector that was off stays off."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ignore_present_objects() -> None:
    """Never look at the objects that exist now: after imports, or when a model has been loaded.

    A full collection then takes milliseconds instead of a third of a second.
    """
    gc.collect()
    gc.freeze()
