# SPDX-License-Identifier: Apache-2.0
"""Files of weights, wherever they lie: a folder or a hub id, whole or in shards.

Weights come from safetensors, or from .bin and .pth files with torch.load(weights_only=True): no
code in them is ever run. They come tensor by tensor.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lisa_ros.errors import CheckpointError


class WeightSource(Protocol):
    """Weights by name, wherever they come from."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's shape."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight."""


class WeightFiles:
    """The weights of one folder (or file), which may lie in several files; read one at a time."""

    def __init__(self, paths: list[Path]):
        self._paths = paths

    @classmethod
    def of_folder(cls, folder: Path) -> WeightFiles:
        """Return the weights of a folder; safetensors where there are both kinds.

        Raises:
            CheckpointError: there are none, or an index names a file that is not there.
        """
        for single in ('model.safetensors', 'pytorch_model.bin'):
            index = folder / f'{single}.index.json'
            if index.is_file():
                named = read_json(index).get('weight_map')
                files = set(named.values()) if isinstance(named, dict) else ()
                paths = [folder / Path(str(name)).name for name in sorted(files, key=str)]
                missing = [path.name for path in paths if not path.is_file()]
                if missing or not paths:
                    raise CheckpointError(
                        f'{index} names files that are not there: {", ".join(missing) or "none"}; '
                        'download the folder again'
                    )
                return cls(paths)
            if (folder / single).is_file():
                return cls([folder / single])
        raise CheckpointError(
            f'{folder}: no weights; expected model.safetensors or pytorch_model.bin, whole or in '
            f'shards with an index; found {describe_folder(folder)}'
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every weight's shape without reading the weights."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self._paths:
            if path.suffix == '.safetensors':
                with _translate_errors(path), safe_open(path, 'pt') as file:
                    shapes |= {k: tuple(file.get_slice(k).get_shape()) for k in _keys(file)}
            else:
                shapes |= {k: tuple(t.shape) for k, t in load_pickle(path, mapped=True).items()}
        return shapes

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight, and let go of it: copy what is to be kept."""
        for path in self._paths:
            if path.suffix == '.safetensors':
                with _translate_errors(path), safe_open(path, 'pt') as file:
                    keys = _keys(file)
                for key in keys:  # opened for each: pages of an open file count as memory of ours
                    with _translate_errors(path), safe_open(path, 'pt') as file:
                        tensor = file.get_tensor(key)
                    yield key, tensor
                    del tensor
            else:
                state = load_pickle(path)
                while state:
                    yield state.popitem()


class _translate_errors:  # noqa: N801  a context manager, read as a verb
    """Turns the errors of a broken safetensors file into ours."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SafetensorError | OSError):
            raise CheckpointError(
                f'{self._path}: no safetensors file that can be read ({error}); download it again'
            ) from error


def _keys(file: safe_open) -> list[str]:
    return file.keys()  # it is no dict, and cannot be iterated


def load_pickle(path: Path, mapped: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a .bin or .pth file; code in it is refused.

    Mapped, nothing is read before it is used; but what was used counts as memory of ours until
    all of it is let go.
    """
    try:
        with path.open('rb') as file:
            start = file.read(2)
        if not start.startswith((b'PK', b'\x80')):  # a zip archive; a bare pickle of old
            raise CheckpointError(
                f'{path}: no weights (a git-lfs pointer? a web page, saved?): it begins with '
                f'{start!r}; download it again'
            )
        try:
            state = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
        except RuntimeError:  # files older than torch 1.6 are no zip archives: no mapping
            state = torch.load(path, map_location='cpu', weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{path}: has more in it than weights, and was not read, for it could run code '
            f'({error_summary(error)}); get a safetensors file, or one of plain tensors'
        ) from error
    except Exception as error:  # at broken bytes torch and its unpickler raise all sorts of things
        raise CheckpointError(
            f'{path}: not a file of weights that can be read ({error_summary(error)}); '
            'download it again'
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f'{path}: holds {type(state).__name__}, not weights by name')
    return dict(state)


def read_json(path: Path) -> dict:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: it holds none, or cannot be read.
    """
    try:
        plain = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path}: no JSON that can be read ({error})') from error
    if not isinstance(plain, dict):
        raise CheckpointError(
            f'{path}: holds a {type(plain).__name__}; expected an object, {{"name": value}}'
        )
    return plain


def error_summary(error: BaseException) -> str:
    """Return what an error says, on one line; the libraries' own may have many, or none."""
    said = ' '.join(str(error).split())
    return f'{type(error).__name__}: {said}' if said else type(error).__name__


def describe_folder(folder: Path) -> str:
    """Return what lies in a folder, for messages."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ', '.join(names[:12]) + (f' and {len(names) - 12} more' if len(names) > 12 else '') or (
        'an empty folder' if folder.is_dir() else 'no such folder'
    )


def resolve_model_folder(name: str | Path, what: str) -> Path:
    """Return the folder that `name` is, or the hub repository's files, downloaded."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f'{what} {name} is a file; expected a folder or a hub id')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(name)):
        raise CheckpointError(
            f'{what} {name}: there is no such folder, and it is no hub id such as '
            'xinlai/LISA-7B-v1 either'
        )
    from huggingface_hub import snapshot_download  # only here: the network is wanted

    texts = ['*.json', '*.model']
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=[*texts, 'model*.safetensors']))
        if not list(folder.glob('*.safetensors')):
            folder = Path(snapshot_download(str(name), allow_patterns=[*texts, 'pytorch_model*']))
    except Exception as error:  # httpx's, xet's and some of the hub's have no other parent
        first = (str(error).splitlines() or [''])[0]
        raise CheckpointError(
            f'{what} {name}: no such folder, and the hub did not give it '
            f'({type(error).__name__}: {first}); check the name and the network, or give a local '
            'folder'
        ) from error
    return folder
