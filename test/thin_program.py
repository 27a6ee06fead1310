# SPDX-License-Identifier: Apache-2.0
"""Run a program of lisa_ros as if PyTorch and what belongs to it were not installed.

python test/thin_program.py node ARGUMENTS OF lisa_node
python test/thin_program.py cli ARGUMENTS OF lisa-ros
"""

import importlib.abc
import sys

ABSENT = (
    *('huggingface_hub', 'safetensors', 'sentencepiece', 'tokenizers', 'torch', 'transformers'),
    'torchvision',
)


class Absent(importlib.abc.MetaPathFinder):
    """Finds no module of ABSENT."""

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ABSENT:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


if __name__ == '__main__':
    sys.meta_path.insert(0, Absent())
    program = sys.argv.pop(1)
    if program == 'node':
        from lisa_ros.ros.node import main
    else:
        from lisa_ros.cli import main
    raise SystemExit(main(None if program == 'node' else sys.argv[1:]))
