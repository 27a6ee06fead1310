# SPDX-License-Identifier: Apache-2.0
"""Weight files: safetensors, .bin and .pth, whole or in shards, read tensor by tensor.

.bin and .pth files are read by torch.load(weights_only=True): no code in them is ever run. What a
file claims to hold is compared with its bytes before any memory is allocated.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lisa_ros.error_text import error_summary, short_repr
from lisa_ros.errors import CheckpointError
from lisa_ros.model.file_checks import check_file, check_whole
from lisa_ros.model.json_file import JsonFields, parse_json
from lisa_ros.model.model_folder import describe_folder, listed
from lisa_ros.model.pickle_claims import ClaimError, UnsafeError, read_claims
from lisa_ros.perception.device_memory import is_memory_error

MAX_WEIGHTS = 16_384  # in all files of a model; LISA-13B has 1400
_MAX_HEADER_BYTES = 8 * 2**20  # of a safetensors file; LISA-13B has 0.2 MB
_REOPEN_BYTES = 16 * 2**20  # pages of an open file count as our memory: it is reopened after these

Shapes = Mapping[str, tuple[int, ...]]  # of weights by name


class WeightSource(Protocol):
    """Weights by name, from files or from memory."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each weight once; copy it if you need it after the next iteration."""


class WeightFiles:
    """The weights of one folder or file, which may be split into shards; read one at a time."""

    def __init__(self, paths: list[Path], index: Path | None = None):
        """Name the files; `index` is the one that lists them, if they are shards."""
        self._paths, self._index = paths, index
        self._shapes: dict[str, tuple[int, ...]] | None = None  # None: the files are not checked

    @classmethod
    def of_folder(cls, folder: Path) -> WeightFiles:
        """Return the weights of a folder; safetensors files if it has both formats.

        Raises:
            CheckpointError: there are no weight files; an index names a missing file or one
                outside the folder; or the folder has two sets of weights, or an update of them.
        """
        for name in ('model.safetensors', 'pytorch_model.bin'):
            index = folder / f'{name}.index.json'
            _check_one_set(folder, name, index.name)
            if os.path.lexists(index):
                return cls(_shards(index, Path(name).suffix), index)
            if os.path.lexists(folder / name):
                return cls([folder / name])
        raise CheckpointError(
            f'{folder}: no weights; expected model.safetensors or pytorch_model.bin, whole or in '
            f'shards with an index; found {describe_folder(folder)}'
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight without reading the weights.

        Raises:
            CheckpointError: a file is damaged, or claims more than its bytes can hold.
        """
        if self._shapes is None:
            self._shapes = self._checked_shapes()
        return dict(self._shapes)

    def _checked_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each weight, compared with the bytes of the files."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self._paths:
            own = _shapes_of(path)
            twice = sorted(own.keys() & shapes.keys())
            if twice:
                raise CheckpointError(f'{path}: {listed(twice)} is in an earlier shard, too')
            shapes |= own
            if len(shapes) > MAX_WEIGHTS:
                raise CheckpointError(
                    f'{path}: has more than {MAX_WEIGHTS} weights; expected about 1000 of a LISA'
                )
        if self._index is not None:
            missing = sorted(_weight_map(self._index).keys() - shapes.keys())
            if missing:
                raise CheckpointError(
                    f'{self._index} names weights that no shard has: {listed(missing)}'
                )
        return shapes

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each weight once; copy it if you need it after the next iteration.

        Raises:
            CheckpointError: as `shapes`.
        """
        self.shapes()  # checks the files
        for path in self._paths:
            if path.suffix == '.safetensors':
                yield from _safetensors(path)
            else:
                state = _read_pickle(path)
                while state:
                    yield state.popitem()


def _check_one_set(folder: Path, whole: str, index: str) -> None:
    """Check that it is clear which weights of a folder are meant; its files are not opened.

    Raises:
        CheckpointError: it has weights in one file and in shards, or an update that is not merged.
    """
    if os.path.lexists(folder / whole) and os.path.lexists(folder / index):
        raise CheckpointError(
            f'{folder} has {whole} and {index}; expected one of them: remove the other one'
        )
    has_weights = os.path.lexists(folder / whole) or os.path.lexists(folder / index)
    if has_weights and os.path.lexists(folder / 'adapter_config.json'):
        raise CheckpointError(
            f'{folder} has adapter_config.json, of an update that is not merged: merge it into '
            'the weights, or remove the file'
        )


def _shards(index: Path, suffix: str) -> list[Path]:
    """Return the files that an index of shards names, in its folder.

    Raises:
        CheckpointError: a name leads out of the folder, has another suffix, or is missing.
    """
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).name != name or '\\' in name or not name.endswith(suffix):
            raise CheckpointError(
                f'{index} names the file {short_repr(name)}; expected the name of a {suffix} file '
                'in its own folder'
            )
    missing = [name for name in names if not os.path.lexists(index.parent / name)]
    if missing or not names:
        raise CheckpointError(
            f'{index} names files that are not there: {listed(missing) or "none"}; '
            'download the folder again'
        )
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file name of each weight, from an index of shards."""
    weight_map = JsonFields.read(index).object('weight_map')
    return {weight: weight_map.text(weight) for weight in weight_map.values}


def _shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight in a file, compared with the file's bytes."""
    if path.suffix != '.safetensors':
        return {name: claim.shape for name, claim in _claims_of(path).items()}
    check_whole(path)
    _check_header(path)
    with _translate_errors(path), safe_open(path, 'pt') as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in _keys(file)}


# ---- safetensors


def _check_header(path: Path) -> None:
    """Check the size and the names of a safetensors file's header.

    The library checks that shapes and offsets fit the bytes; of a name that occurs twice, it
    keeps one.
    """
    size = check_file(path)
    with path.open('rb') as file:
        start = file.read(8)
        length = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(
                f'{path}: not a safetensors file: it claims a header of {length} bytes and has '
                f'{size} bytes; expected a header of 2 to {_MAX_HEADER_BYTES} bytes; download it '
                'again'
            )
        names = parse_json(file.read(length), f'{path} (its header)')
    if len(names) > MAX_WEIGHTS + 1:  # one is for metadata
        raise CheckpointError(f'{path}: has {len(names)} weights; expected about 1000 of a LISA')


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight of a safetensors file."""
    with _translate_errors(path), safe_open(path, 'pt') as file:
        keys = _keys(file)
    while keys:
        read_bytes = 0
        with _translate_errors(path), safe_open(path, 'pt') as file:
            while keys and read_bytes < _REOPEN_BYTES:
                key = keys.pop(0)
                tensor = file.get_tensor(key)
                read_bytes += tensor.nbytes
                yield key, tensor
                del tensor


class _translate_errors:  # noqa: N801  a context manager, read as a verb
    """Turns the errors of a broken safetensors file into CheckpointError."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError | OSError) and not is_memory_error(error):
            raise CheckpointError(
                f'{self._path}: cannot be read as a safetensors file ({error}); download it again'
            ) from error


def _keys(file: safe_open) -> list[str]:
    return file.keys()  # not a dict: it cannot be iterated


# ---- .bin and .pth


def load_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .bin or .pth file; refuse a file that contains code.

    Raises:
        CheckpointError: the file cannot be read, contains code, claims more than its bytes, or is
            not a dict of tensors.
    """
    _claims_of(path)
    return _read_pickle(path)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .bin or .pth file whose claims were checked."""
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # for damaged bytes torch and its unpickler raise many types
        if is_memory_error(error):
            raise
        raise CheckpointError(
            f'{path}: cannot be read as a weight file ({error_summary(error)}); download it again'
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f'{path}: holds {type(state).__name__}; expected weights by name')
    return dict(state)


def _claims_of(path: Path) -> Mapping:
    """Return what a .bin or .pth file holds; see `read_claims`.

    Raises:
        CheckpointError: as `load_pickle`.
    """
    check_whole(path)
    with path.open('rb') as file:
        start = file.read(4)
    if start != b'PK\x03\x04' and not start.startswith(b'\x80'):  # neither a zip nor a pickle
        raise CheckpointError(
            f'{path}: not a weight file (a git-lfs pointer? a saved web page?): it starts '
            f'with {start!r}; download it again'
        )
    try:
        return read_claims(path)
    except UnsafeError as error:
        raise CheckpointError(
            f'{path}: contains more than weights and was not loaded, because it could run code '
            f'(it {error}); get a safetensors file, or one with tensors only'
        ) from error
    except (ClaimError, OSError) as error:
        raise CheckpointError(
            f'{path}: cannot be read as a weight file ({error}); download it again'
        ) from error
