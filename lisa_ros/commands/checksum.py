# SPDX-License-Identifier: Apache-2.0
"""`lisa-ros checksum`: print the SHA-256 of a model, and write it into a lock file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lisa_ros.commands.arguments import setting_arguments
from lisa_ros.files.output import check_output_file
from lisa_ros.settings import Settings


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command."""
    parser = commands.add_parser(
        'checksum',
        help='print the SHA-256 of a model; write a lock file',
        description='Prints the SHA-256 of each file that loading reads, as sha256sum does, and '
        'that of the whole folder, which --sha256 and the parameter model_sha256 accept.',
    )
    parser.add_argument(
        'model',
        metavar='MODEL',
        help='lisa-tabletop, a folder, a hub id, vlm+sam:NAME (with its SAM 2), or a .pth file of '
        'segment-anything',
    )
    setting_arguments(parser, Settings, ('segmenter_model', 'allow_download'))
    parser.add_argument(
        '--write-lock',
        type=Path,
        metavar='FILE',
        help='add the model to this lock file, which --lock and the parameter model_lock read; a '
        'hub id is locked to the revision that was downloaded',
    )
    parser.set_defaults(run=checksum)


def checksum(options: argparse.Namespace) -> None:
    """Print the checksums of a model and its SAM 2; write them into a lock file if asked for."""
    from lisa_ros.model.checksums import Lock, file_checksums, folder_checksum, write_lock

    if options.write_lock is not None:
        check_output_file(options.write_lock, 'give another --write-lock')
        if options.write_lock.exists():
            Lock.read(options.write_lock)  # fail early: the checksums of a model take minutes
    for model, source in _sources(options).items():
        checksums = file_checksums(source)
        for name, digest in checksums.items():
            print(f'{digest}  {name}')
        print(f'{folder_checksum(checksums)}  {source}')
        if options.write_lock is not None:
            name, revision = _locked_name(model, source)
            write_lock(options.write_lock, name, revision, checksums)
            print(f'{options.write_lock}: locked {name}', file=sys.stderr)


def _sources(options: argparse.Namespace) -> dict[str, Path]:
    """Return the folders or files that loading reads, by the name that the user gave them."""
    from lisa_ros.model.origin import Origin, is_hub_id
    from lisa_ros.perception.model_source import DEFAULT_SEGMENTER, VLM_SCHEME, segmenter_folder

    model = options.model.removeprefix(VLM_SCHEME)
    sources = {model: _source(model)}
    if options.segmenter_model or model != options.model:
        named, may_download = options.segmenter_model or None, options.allow_download
        segmenter = segmenter_folder(named, Origin(), may_download or is_hub_id(model))
        sources[named or DEFAULT_SEGMENTER] = segmenter
    return sources


def _source(model: str) -> Path:
    """Return the folder or file of a model, after a download of a hub id."""
    from lisa_ros.model.origin import Origin
    from lisa_ros.model.registry import resolve_bundled_model

    path = Path(model).expanduser()
    return path if path.is_file() else Origin().model_folder(resolve_bundled_model(model))


def _locked_name(model: str, source: Path) -> tuple[str, str | None]:
    """Return the name in the lock file, and the hub's revision; None for local files."""
    from lisa_ros.model.checksums import local_name
    from lisa_ros.model.origin import is_hub_id

    if not source.is_file() and is_hub_id(model) and source.parent.name == 'snapshots':
        return model, source.name
    return local_name(source), None
