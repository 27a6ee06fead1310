# SPDX-License-Identifier: Apache-2.0
"""Import torch, then check the GPU and the files of a model; runs in a process of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator


def main(arguments: list[str]) -> Iterator[dict[str, object]]:
    """Yield `torch`, then also `weights`, `import`, and `loaded` if the model is to be loaded.

    Args:
        arguments: JSON with the fields of `weights.ModelOptions`, whether to load the model, and
            the module to import, "" for none.
    """
    options, is_loaded, backend = map(json.loads, arguments)
    os.nice(5)  # the import of torch must not delay what measures time
    from lisa_ros.doctor.torch_facts import torch_facts

    facts: dict[str, object] = {'torch': torch_facts()}
    yield facts
    from lisa_ros.doctor import model_files

    facts['weights'] = model_files.check_files(options)
    yield facts
    if backend:
        facts['import'] = model_files.import_backend(backend)  # takes longest
        yield facts
    if is_loaded:
        facts['loaded'] = model_files.load_and_ask(options)
        yield facts
