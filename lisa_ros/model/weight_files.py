# SPDX-License-Identifier: Apache-2.0
"""Weight files: safetensors, .bin and .pth, whole or in shards, read tensor by tensor.

.bin and .pth files are read by torch.load(weights_only=True): no code in them is ever run.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lisa_ros.errors import CheckpointError
from lisa_ros.model.model_folder import describe_folder, error_summary, read_json


class WeightSource(Protocol):
    """Weights by name, from files or from memory."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each weight once; copy it if you need it after the next iteration."""


class WeightFiles:
    """The weights of one folder or file, which may be split into shards; read one at a time."""

    def __init__(self, paths: list[Path]):
        self._paths = paths

    @classmethod
    def of_folder(cls, folder: Path) -> WeightFiles:
        """Return the weights of a folder; safetensors files if it has both formats.

        Raises:
            CheckpointError: there are no weight files, or an index names a missing file.
        """
        for name in ('model.safetensors', 'pytorch_model.bin'):
            index = folder / f'{name}.index.json'
            if index.is_file():
                return cls(_shards(index))
            if (folder / name).is_file():
                return cls([folder / name])
        raise CheckpointError(
            f'{folder}: no weights; expected model.safetensors or pytorch_model.bin, whole or in '
            f'shards with an index; found {describe_folder(folder)}'
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight without reading the weights."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self._paths:
            if path.suffix == '.safetensors':
                with _translate_errors(path), safe_open(path, 'pt') as file:
                    shapes |= {k: tuple(file.get_slice(k).get_shape()) for k in _keys(file)}
            else:
                shapes |= {k: tuple(t.shape) for k, t in load_pickle(path, mapped=True).items()}
        return shapes

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each weight once; copy it if you need it after the next iteration."""
        for path in self._paths:
            if path.suffix == '.safetensors':
                with _translate_errors(path), safe_open(path, 'pt') as file:
                    keys = _keys(file)
                for key in keys:  # reopened for each: pages of an open file count as our memory
                    with _translate_errors(path), safe_open(path, 'pt') as file:
                        tensor = file.get_tensor(key)
                    yield key, tensor
                    del tensor
            else:
                state = load_pickle(path)
                while state:
                    yield state.popitem()


def _shards(index: Path) -> list[Path]:
    """Return the files that an index of shards names."""
    weight_map = read_json(index).get('weight_map')
    names = set(weight_map.values()) if isinstance(weight_map, dict) else ()
    paths = [index.parent / Path(str(name)).name for name in sorted(names, key=str)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise CheckpointError(
            f'{index} names files that are not there: {", ".join(missing) or "none"}; '
            'download the folder again'
        )
    return paths


class _translate_errors:  # noqa: N801  a context manager, read as a verb
    """Turns the errors of a broken safetensors file into CheckpointError."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError | OSError):
            raise CheckpointError(
                f'{self._path}: cannot be read as a safetensors file ({error}); download it again'
            ) from error


def _keys(file: safe_open) -> list[str]:
    return file.keys()  # not a dict: it cannot be iterated


def load_pickle(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a .bin or .pth file; refuse a file that contains code.

    Args:
        path: the file.
        mapped: map the file into memory and read tensors on use. Used pages count as our memory
            until all tensors are freed.

    Raises:
        CheckpointError: the file cannot be read, contains code, or is not a dict of tensors.
    """
    try:
        with path.open('rb') as file:
            start = file.read(2)
        if not start.startswith((b'PK', b'\x80')):  # a zip archive, or an old plain pickle
            raise CheckpointError(
                f'{path}: not a weight file (a git-lfs pointer? a saved web page?): it starts '
                f'with {start!r}; download it again'
            )
        try:
            state = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
        except RuntimeError:  # files older than PyTorch 1.6 are no zip archives: no mapping
            state = torch.load(path, map_location='cpu', weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{path}: contains more than weights and was not loaded, because it could run code '
            f'({error_summary(error)}); get a safetensors file, or one with tensors only'
        ) from error
    except Exception as error:  # for damaged bytes torch and its unpickler raise many types
        raise CheckpointError(
            f'{path}: cannot be read as a weight file ({error_summary(error)}); download it again'
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f'{path}: holds {type(state).__name__}; expected weights by name')
    return dict(state)
