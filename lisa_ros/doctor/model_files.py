# SPDX-License-Identifier: Apache-2.0
"""Check the files of a model, or load it and ask it; see model_probe.py.

Transformers is imported after the files are checked: it takes seconds.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lisa_ros.error_text import error_summary
from lisa_ros.errors import LisaError
from lisa_ros.health.verdict import Level
from lisa_ros.model.checksums import Lock
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.limits import GB, free_memory
from lisa_ros.model.origin import Origin, cached_folder, is_hub_id
from lisa_ros.model.registry import resolve_bundled_model
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.model.weight_files import WeightFiles
from lisa_ros.optional_packages import local_model_packages

_CURE = 'see "Models and weights" in docs/troubleshooting.md'
_WEIGHTS = ('.safetensors', '.bin')


def check_files(options: Mapping[str, Any]) -> dict[str, object]:
    """Return `level` (a number), `observed` and `cure` of the files of a model; nothing is loaded.

    Args:
        options: the fields of `weights.ModelOptions`.
    """
    try:
        return _checked(options)
    except LisaError as error:
        return _finding(Level.ERROR, str(error), _CURE)
    except Exception as error:  # noqa: BLE001  # the files come from other people
        return _finding(Level.ERROR, f'{options["model"]}: {error_summary(error)}', _CURE)


def import_backend(module: str) -> dict[str, object]:
    """Import what answers with a model on this machine; return as `check_files`.

    Args:
        module: of lisa_ros; it imports transformers, and that a torchvision if there is one.
    """
    try:
        with local_model_packages('the model'):
            importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  # the packages come from other people
        observed = str(error) if isinstance(error, LisaError) else error_summary(error)
        return _finding(Level.ERROR, observed, 'see its text')
    return _finding(Level.OK, f'{module} and the packages that it needs')


def load_and_ask(options: Mapping[str, Any]) -> dict[str, object]:
    """Load a model and ask it about the sample image; return as `check_files`."""
    try:
        return _loaded(options)
    except LisaError as error:
        return _finding(Level.ERROR, str(error), _CURE)


def _finding(level: Level, observed: str, cure: str = '') -> dict[str, object]:
    return {'level': int(level), 'observed': observed, 'cure': cure}


def _checked(options: Mapping[str, Any]) -> dict[str, object]:
    name = resolve_bundled_model(options['model'])
    lock = Lock.read(options['lock']) if options['lock'] else None
    is_remote = is_hub_id(name)
    if is_remote:
        revision = lock.find(name).revision if lock else None
        if cached_folder(str(name), revision) is None:
            cure = f'start once with the network, or: hf download {name}'
            return _finding(Level.WARN, f'{name} is not in the local cache', cure)
    origin = Origin(sha256=options['sha256'] or None, lock=lock, is_offline=True)
    folder = origin.model_folder(name)
    towers = _parts(folder, options['vision_tower'], origin, is_local=not is_remote)
    return _size([folder, *towers], bool(options['sha256'] or lock))


def _parts(folder: Path, vision_tower: str, origin: Origin, *, is_local: bool) -> list[Path]:
    """Read configs, tokenizer and the headers of all weights; return the folder of CLIP, if any.

    Raises:
        LisaError: a file is missing, damaged or not readable.
    """
    config = JsonFields.read(folder / 'config.json')
    WeightFiles.of_folder(folder).shapes()
    Tokenizer.load(folder)
    if config.text('model_type', '') == 'lisa_ros':
        ClipPreprocessing.read(folder / 'preprocessor_config.json')
        return []
    tower, _ = origin.find_tower(folder, config, vision_tower, is_local=is_local)
    WeightFiles.of_folder(tower).shapes()
    return [tower]


def _size(folders: list[Path], is_verified: bool) -> dict[str, object]:
    """Return the finding about whole files: do they fit into the memory?"""
    files = [f for folder in folders for f in folder.iterdir() if f.suffix in _WEIGHTS]
    size, free = sum(file.stat().st_size for file in files), free_memory('cpu')
    sums = 'checksums are right' if is_verified else 'checksums not compared (--sha256, --lock)'
    observed = f'{folders[0]}: whole, {size / GB:.2f} GB, {sums}'
    if free is not None and size > free:
        cure = 'close programs, or use precision bf16, int8 or nf4 on a GPU'
        return _finding(Level.WARN, f'{observed}; {free / GB:.2f} GB of memory are free', cure)
    return _finding(Level.OK, observed)


def _loaded(options: Mapping[str, Any]) -> dict[str, object]:
    """Load the model and ask it about the sample image that is part of the package."""
    from lisa_ros.messages import bag
    from lisa_ros.perception.segmenter import Segmenter
    from lisa_ros.resources import SAMPLE
    from lisa_ros.results import ANSWERED

    start = time.monotonic()
    segmenter = Segmenter.load(
        options['model'],
        device=options['device'],
        precision=options['precision'],
        vision_tower=options['vision_tower'] or None,
        segmenter_model=options['segmenter_model'] or None,
        vlm_url=options['vlm_url'] or None,
        api_key_env=options['api_key_env'] or None,
        api_key_file=options['api_key_file'] or None,
        sha256=options['sha256'] or None,
        lock=options['lock'] or None,
        allow_download=bool(options['allow_download']),
        template=options['template'] or None,
        max_input_side=options['max_input_side'],
        max_model_size=options['max_model_size'],
    )
    seconds = time.monotonic() - start
    image = next(iter(bag.read_images(SAMPLE / 'bag', '/camera/color/image_raw'))).pixels
    result = segmenter.segment(image, 'segment the yellow mug')
    observed = (
        f'loaded in {seconds:.1f} s on {segmenter.device}; it answers {result.answer!r} with '
        f'{len(result.masks)} masks'
    )
    if result.status in ANSWERED:
        return _finding(Level.OK, observed)
    return _finding(
        Level.ERROR, f'{observed}: {result.status.name}: {result.reason}', 'see its text'
    )
