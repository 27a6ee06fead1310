# SPDX-License-Identifier: Apache-2.0
"""Find the files of a model: local folders, or downloads where the user allowed them.

Who names a hub id allows its download. A hub id that stands in the config.json of a local folder
was not named by the user: it is taken from the local cache, and downloaded only with
`allow_download`. Checksums and the lock file are checked here, before a file is opened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lisa_ros.errors import CheckpointError
from lisa_ros.model.checksums import Lock, check_sha256
from lisa_ros.model.file_checks import check_file, check_folder, exists
from lisa_ros.model.json_file import JsonFields

_HUB_ID = re.compile(r'[A-Za-z0-9_][\w.-]*/[\w.-]+')
_HUB = 'https://huggingface.co'
_TEXT_FILES = ('*.json', '*.model')


@dataclass(frozen=True)
class Origin:
    """Where the files of a model may come from, and what they must be."""

    allow_download: bool = False  # of what a local folder's config.json names
    sha256: str | None = None  # of the model's folder or of its only weight file
    lock: Lock | None = None  # checksums of all that is loaded, and revisions for downloads
    is_offline: bool = False  # download nothing, not even what the user names

    def model_folder(self, name: str | Path) -> Path:
        """Return the folder of the model that the user named.

        Raises:
            CheckpointError: there is no such folder or repository, it may not be read, or it has
                other checksums.
        """
        folder = self._folder(name, 'model', is_allowed=True)
        if self.sha256:
            check_sha256(folder, self.sha256)
        return folder

    def tower_folder(self, name: str | Path, *, of_config: Path | None) -> Path:
        """Return the folder of a vision tower.

        Args:
            name: a folder or hub id.
            of_config: the local folder whose config.json names it; None: the user named it, or
                the model itself is from the hub.

        Raises:
            CheckpointError: as `model_folder`; or the user has not allowed its download.
        """
        is_allowed = of_config is None or self.allow_download
        return self._folder(name, 'vision tower', is_allowed, of_config)

    def find_tower(
        self, folder: Path, config: JsonFields, vision_tower: str | Path | None, *, is_local: bool
    ) -> tuple[Path, str | None]:
        """Return the folder of a model's vision tower, and its name for another config.json.

        The name is a full path or a hub id; None for a tower inside the model's own folder, where
        `export.save_clip` writes it.

        Args:
            folder: of the model.
            config: its config.json.
            vision_tower: the user's choice, or None.
            is_local: the model is a local folder, so that the user has named no hub id.

        Raises:
            CheckpointError: config.json names none, or it is not found or may not be downloaded.
        """
        name = (
            vision_tower or config.text('mm_vision_tower', '') or config.text('vision_tower', '')
        )
        if not name:
            raise CheckpointError(f'{folder}/config.json names no vision tower: give vision_tower')
        relative = folder / name
        if not Path(name).is_absolute() and exists(relative) and relative.is_dir():
            if relative.resolve().is_relative_to(folder.resolve()):
                return relative, None  # its files were checked with the model's
            name = relative
        is_named_by_config = is_local and not vision_tower
        tower = self.tower_folder(name, of_config=folder if is_named_by_config else None)
        return tower, str(name) if is_hub_id(name) else str(tower.resolve())

    def sam_file(self, path: str | Path) -> Path:
        """Return the path of a segment-anything file that the user named.

        Raises:
            CheckpointError: it is missing, may not be read, or has another checksum.
        """
        path = Path(path).expanduser()
        check_file(path, 'a SAM .pth file')
        if self.lock is not None:
            self.lock.check(path, path)
        return path

    def _folder(
        self, name: str | Path, noun: str, is_allowed: bool, of_config: Path | None = None
    ) -> Path:
        folder = local_folder(name, noun)
        if folder is None:
            revision = self.lock.find(name).revision if self.lock else None
            may_download = is_allowed and not self.is_offline
            folder = _cached_or_downloaded(str(name), noun, revision, may_download, of_config)
        check_folder(folder)
        if self.lock is not None:
            self.lock.check(name, folder)
        return folder


def is_hub_id(name: str | Path) -> bool:
    """Return whether a name has the form of a hub id and is not a local folder.

    Raises:
        CheckpointError: a folder of this name may exist, but may not be read.
    """
    return bool(_HUB_ID.fullmatch(str(name))) and local_folder(name, 'model') is None


def local_folder(name: str | Path, noun: str) -> Path | None:
    """Return a local folder; None if there is none and the name has the form of a hub id.

    Raises:
        CheckpointError: it is a file, may not be read, or is missing and no hub id.
    """
    if not exists(Path(name)):
        if _HUB_ID.fullmatch(str(name)):
            return None
        raise CheckpointError(
            f'{noun} {name}: no such folder, and not a hub id; expected a folder or an id such as '
            'xinlai/LISA-7B-v1'
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f'{noun} {name} is a file; expected a folder or a hub id')
    return folder


def _cached_or_downloaded(
    name: str, noun: str, revision: str | None, may_download: bool, of_config: Path | None
) -> Path:
    """Return the hub's local cache of a repository, after a download if that is allowed.

    Raises:
        CheckpointError: the download failed, or is not allowed and the cache lacks it.
    """
    if not may_download:
        cached = cached_folder(name, revision)
        if cached is not None:
            return cached
        source = f', which {of_config}/config.json names,' if of_config else ''
        raise CheckpointError(
            f'{noun} {name}{source} is neither a local folder nor in the local cache, and is not '
            'downloaded without permission: give a folder with vision_tower:=/path '
            '(--vision-tower), or allow the download with allow_download:=true (--allow-download)'
        )
    try:
        return _snapshot(name, revision, local_files_only=False)
    except Exception as error:  # errors of httpx, xet and the hub have no other common base class
        first_line = (str(error).splitlines() or [''])[0]
        raise CheckpointError(
            f'{noun} {name}: no such folder, and the download from the hub failed '
            f'({type(error).__name__}: {first_line}); {_download_cure(name, error)}, or give a '
            'local folder'
        ) from error


def _download_cure(name: str, error: BaseException | None) -> str:
    """Return what to do about a failed download: it is refused, or the hub is not reached."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__
    if not any(_is_refused(cause) for cause in causes):
        return 'check the name and the network'
    return (
        f'check the name; for a private or gated model accept its licence at {_HUB}/{name} and '
        'log in with `hf auth login` or HF_TOKEN; a token that has expired is refused for public '
        'models, too: unset HF_TOKEN, or `hf auth logout`'
    )


def _is_refused(error: BaseException) -> bool:
    """Return whether the hub says that a repository is not there for this user.

    The hub's own types are not imported: its import may be what has failed.
    """
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    return status in (401, 403) or type(error).__name__ == 'RepositoryNotFoundError'


def cached_folder(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a hub id in the local cache; None if it is not there, or not whole."""
    try:
        folder = _snapshot(name, revision, local_files_only=True)
    except Exception:  # noqa: BLE001  # as above
        return None
    is_whole = any(path.suffix in ('.safetensors', '.bin') for path in folder.iterdir())
    return folder if is_whole else None


def _snapshot(name: str, revision: str | None, local_files_only: bool) -> Path:
    """Return the hub's cache folder of a repository, with safetensors files if it has some."""
    from huggingface_hub import snapshot_download  # only here: it uses the network

    options = {'revision': revision} if revision else {}
    if local_files_only:
        options['local_files_only'] = True
    folder = Path()
    for pattern in ('model*.safetensors', 'pytorch_model*'):
        folder = Path(snapshot_download(name, allow_patterns=[*_TEXT_FILES, pattern], **options))
        if list(folder.glob('*.safetensors')):
            break
    return folder
