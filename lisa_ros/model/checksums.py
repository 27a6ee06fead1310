# SPDX-License-Identifier: Apache-2.0
r"""SHA-256 checksums of model folders, and the lock file that pins models to them.

The checksum of a folder is that of the lines which `sha256sum` prints for its files, by name:

    cd FOLDER && find . -name '*.bin' -o -name '*.json' -o -name '*.model' -o -name '*.pth' \
        -o -name '*.safetensors' | cut -c 3- | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum

`lisa-ros checksum MODEL` prints it. A lock file is JSON:

    {"lisa_ros_lock": 1,
     "models": {"xinlai/LISA-7B-v1": {"revision": COMMIT, "files": {NAME: SHA256}}}}

Files that loading does not read (README.md, *.py) are not counted. Any thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.error_text import short_repr
from lisa_ros.errors import CheckpointError
from lisa_ros.files.access import describe_error
from lisa_ros.model.file_checks import check_file
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.model_folder import listed

_READ_SUFFIXES = {'.json', '.model', '.safetensors', '.bin', '.pth'}
_WEIGHT_SUFFIXES = {'.safetensors', '.bin', '.pth'}
_MAX_FILES = 10_000
_SHA256 = re.compile(r'[0-9a-f]{64}')


def file_checksums(source: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that loading may read, by its name inside the folder.

    Args:
        source: a folder, or one file.

    Raises:
        CheckpointError: a file cannot be read.
    """
    if source.is_file():
        return {source.name: _sha256(source)}
    names = {}
    try:
        for path in source.rglob('*'):
            if path.suffix in _READ_SUFFIXES and not path.is_dir():
                names[path.relative_to(source).as_posix()] = path
                if len(names) > _MAX_FILES:
                    raise CheckpointError(f'{source}: has more than {_MAX_FILES} files')
    except OSError as error:
        raise CheckpointError(f'{source}: {describe_error(source, error)}') from error
    return {name: _sha256(names[name]) for name in sorted(names)}


def folder_checksum(checksums: Mapping[str, str]) -> str:
    """Return the SHA-256 of a folder from those of its files."""
    lines = ''.join(f'{checksums[name]}  {name}\n' for name in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_sha256(source: Path, expected: str) -> None:
    """Compare a model with the checksum of its folder, or of its only weight file.

    Raises:
        CheckpointError: it has another checksum, or `expected` is none.
    """
    expected = expected.strip().lower()
    if not _SHA256.fullmatch(expected):
        raise CheckpointError(
            f'model_sha256 is {short_repr(expected)}; expected 64 hexadecimal digits, as '
            f'`lisa-ros checksum {source}` prints them'
        )
    checksums = file_checksums(source)
    weights = [name for name in checksums if Path(name).suffix in _WEIGHT_SUFFIXES]
    accepted = {folder_checksum(checksums)}
    if len(weights) == 1:
        accepted.add(checksums[weights[0]])
    if expected not in accepted:
        raise CheckpointError(
            f'{source}: has the SHA-256 {folder_checksum(checksums)}, expected {expected}: the '
            'files were changed or have another version; download them again, or correct '
            'model_sha256'
        )


def _sha256(path: Path) -> str:
    check_file(path)
    digest = hashlib.sha256()
    try:
        with path.open('rb') as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:  # of a disk or a network file system
        raise CheckpointError(f'{path}: {describe_error(path, error)}') from error
    return digest.hexdigest()


# ---- lock file


@dataclass(frozen=True)
class LockedModel:
    """What a lock file says of a model."""

    revision: str | None  # commit of the hub's repository; None: a local folder
    files: Mapping[str, str]  # SHA-256 by name


@dataclass(frozen=True)
class Lock:
    """Models and the checksums of their files."""

    path: Path
    models: Mapping[str, LockedModel]

    @classmethod
    def read(cls, path: str | Path) -> Lock:
        """Return the content of a lock file.

        Raises:
            CheckpointError: it cannot be read, or is not a lock file.
        """
        path = Path(path).expanduser()
        fields = JsonFields.read(path)
        fields.integer('lisa_ros_lock', minimum=1, maximum=1)
        models = fields.object('models')
        return cls(path, {name: _locked_model(models.object(name)) for name in models.values})

    def find(self, name: str | Path) -> LockedModel:
        """Return the entry of a model: by its hub id, or by the name of its folder or file.

        Raises:
            CheckpointError: there is none.
        """
        last = local_name(name)
        for key in (str(name), last):
            if key in self.models:
                return self.models[key]
        same = [key for key in self.models if key.rpartition('/')[2] == last]
        if len(same) == 1:  # a copy of a hub's repository
            return self.models[same[0]]
        raise CheckpointError(
            f'{self.path}: has no entry for {name}, only for {listed(sorted(self.models))}; add '
            f'it with: lisa-ros checksum {name} --write-lock {self.path}'
        )

    def check(self, name: str | Path, source: Path) -> None:
        """Compare the files of a model with its entry.

        Raises:
            CheckpointError: there is no entry, or a file is missing, added or changed.
        """
        expected, found = self.find(name).files, file_checksums(source)
        changed = sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n])
        groups = {
            'missing': sorted(expected.keys() - found.keys()),
            'not in the lock file': sorted(found.keys() - expected.keys()),
            'changed': changed,
        }
        problems = [f'{listed(names)} {word}' for word, names in groups.items() if names]
        if problems:
            raise CheckpointError(
                f'{source}: differs from {self.path}: {"; ".join(problems)}; get the locked '
                'files, or write the lock again if you trust these'
            )


def local_name(path: str | Path) -> str:
    """Return the name of a local folder or file in a lock file; a link has its own."""
    return Path(os.path.abspath(Path(path).expanduser())).name  # noqa: PTH100  # links stay


def write_lock(path: Path, name: str, revision: str | None, checksums: Mapping[str, str]) -> None:
    """Add a model to a lock file, or replace its entry; the file is created if it is missing.

    Raises:
        CheckpointError: the file exists and is not a lock file, or cannot be written.
    """
    models = dict(Lock.read(path).models) if path.exists() else {}
    models[name] = LockedModel(revision, checksums)
    content = {
        'lisa_ros_lock': 1,
        'models': {
            key: {'revision': models[key].revision, 'files': dict(models[key].files)}
            for key in sorted(models)
        },
    }
    try:
        path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be written ({error.strerror})') from error


def _locked_model(fields: JsonFields) -> LockedModel:
    files = fields.object('files')
    checksums = {name: files.text(name) for name in files.values}
    for name, checksum in checksums.items():
        if not _SHA256.fullmatch(checksum):
            raise files.error(name, '64 hexadecimal digits')
    return LockedModel(fields.text('revision', None), checksums)
