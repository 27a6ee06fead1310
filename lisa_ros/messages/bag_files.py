# SPDX-License-Identifier: Apache-2.0
"""Finds and opens the files of a bag, also without a usable metadata.yaml."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from rosbags.rosbag1 import Reader as Reader1
from rosbags.rosbag2 import Reader as Reader2
from rosbags.rosbag2.reader import zstd  # of Python from 3.14 on, or its backport

from lisa_ros.error_text import one_line, short_repr
from lisa_ros.errors import DataError, ErrorHandler
from lisa_ros.files.access import access_problem, list_folder
from lisa_ros.files.text import read_yaml
from lisa_ros.messages.bag_reader import OpenStorage, Storage, cure
from lisa_ros.messages.decompression import decompress_zstd
from lisa_ros.messages.mcap_scan import McapScan, is_cut, starts_as_mcap
from lisa_ros.messages.sqlite_scan import SqliteScan

_SUFFIXES = ('.mcap', '.db3')  # of rosbag2's files
ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'  # start of a Zstandard frame (RFC 8878); CDR starts with 0
_COMPRESSED_SUFFIX = '.zstd'  # of files that are compressed as a whole
_BLOCK_SIZE = 2**18  # of a file that is decompressed; before damage, less is lost [bytes]
_SPACE_LEFT = 2**28  # that other programs may need [bytes]
_NO_SCHEMA = '__schemaless__'  # rosbags' type of a channel whose schema it has not found
_PART = re.compile(r'(?P<bag>.*_)(?P<number>\d{1,9})(?P<suffix>\.mcap|\.db3)(\.zstd)?')


@dataclass(frozen=True)
class BagMetadata:
    """What metadata.yaml says about the files of a bag."""

    files: tuple[str, ...]  # names in the bag's folder; parts that it does not list yet, too
    are_messages_compressed: bool
    message_counts: dict[str, int]  # by topic


def open_storages(
    bag: Path, on_error: ErrorHandler, stack: contextlib.ExitStack
) -> list[OpenStorage]:
    """Open the files of a bag.

    Args:
        bag: see `messages.bag.open_bag`.
        on_error: called for each file, or part of it, that cannot be read; if it returns, the
            other files and parts are opened.
        stack: gets the temporary files to remove.

    Raises:
        DataError: the bag is missing, or may not be read, or `on_error` raised it.
    """
    problem = access_problem(bag)
    if problem.startswith('no such'):
        raise DataError(f'there is no bag at {bag}')
    if problem:
        raise DataError(f'{bag}: {problem}')
    metadata = None if bag.is_file() else _read_metadata(bag)
    if metadata is None:
        paths = [bag] if bag.is_file() else _readable(bag, _files_in(bag), on_error)
        _check_logs(bag, paths, on_error)
        files = [_decompressed_file(bag, path, on_error, stack) for path in paths]
        decompress = _decompress_if_compressed if bag.is_dir() else None
        return _open_files(bag, list(filter(None, files)), on_error, decompress)
    # rosbags opens a folder, too, but loses topics that differ in its files and metadata.yaml,
    # such as by a quality of service that was edited there
    present = _present_files(bag, metadata, on_error)
    _check_logs(bag, present, on_error)
    files = [_decompressed_file(bag, path, on_error, stack) for path in present]
    decompress = _decompress_if_compressed if metadata.are_messages_compressed else None
    storages = _open_files(bag, list(filter(None, files)), on_error, decompress)
    if storages and not any(storage.storage.connections for storage in storages):
        _report_lost_topics(bag, metadata, storages[0].files[0], on_error)
    return storages


# ---- metadata.yaml


def _read_metadata(bag: Path) -> BagMetadata | None:
    """Return what metadata.yaml says; None if it is missing, empty, cut or of another format.

    Raises:
        DataError: it may not be read.
    """
    path = bag / 'metadata.yaml'
    problem = access_problem(path)
    if problem and not problem.startswith('no such'):
        raise DataError(f'{path}: {problem}')
    try:
        information = read_yaml(path)['rosbag2_bagfile_information']
        names = [PurePosixPath(name).name for name in information['relative_file_paths']]
        mode = str(information.get('compression_mode', '')).lower()
    except (DataError, KeyError, TypeError, AttributeError):
        return None
    names = [name for name in names if PurePosixPath(name).suffix in (*_SUFFIXES, '.zstd')]
    if not names:
        return None
    files = dict.fromkeys((*names, *_later_parts(bag, names[-1])))
    return BagMetadata(tuple(files), mode == 'message', _message_counts(information))


def _message_counts(information: dict) -> dict[str, int]:
    """Return how many messages each topic has; empty if that is not told in the usual form."""
    topics = information.get('topics_with_message_count') or ()
    try:
        return {topic['topic_metadata']['name']: topic['message_count'] for topic in topics}
    except (KeyError, TypeError):
        return {}


def _later_parts(bag: Path, last: str) -> Iterator[str]:
    """Yield the files of a folder that follow the last one that metadata.yaml lists.

    A recorder writes metadata.yaml when it begins a file, so one that is killed may not list all.
    """
    name = _PART.fullmatch(last)
    if name is None:
        return
    for number in itertools.count(int(name['number']) + 1):
        plain = f'{name["bag"]}{number}{name["suffix"]}'
        part = next((n for n in (plain, plain + _COMPRESSED_SUFFIX) if (bag / n).exists()), None)
        if part is None:
            return
        yield part


def _present_files(bag: Path, metadata: BagMetadata, on_error: ErrorHandler) -> list[Path]:
    """Return the files that metadata.yaml lists; a missing one is a loss, and no detail."""
    present = []
    for listed in metadata.files:
        name = _present_name(bag, listed)
        problem = access_problem(bag / name)
        if problem:
            reason = 'is missing' if problem.startswith('no such') else problem
            on_error(
                DataError(
                    f'{bag}: its file {name}, which metadata.yaml lists, {reason}; copy it again, '
                    f'or run `ros2 bag reindex {bag}` to read the bag without it'
                )
            )
        else:
            present.append(bag / name)
    return present


def _present_name(bag: Path, listed: str) -> str:
    """Return the name of a listed file; if that is missing, with or without compression."""
    plain = listed.removesuffix(_COMPRESSED_SUFFIX)
    other = plain if plain != listed else plain + _COMPRESSED_SUFFIX
    return other if (bag / other).exists() and not (bag / listed).exists() else listed


def _readable(bag: Path, paths: Sequence[Path], on_error: ErrorHandler) -> list[Path]:
    """Return the files that can be opened; opening a pipe would wait for ever."""
    readable = []
    for path in paths:
        problem = access_problem(path)
        if problem:
            on_error(DataError(f'{bag}: {path.name}: {problem}; expected a file of a bag'))
        else:
            readable.append(path)
    return readable


def _report_lost_topics(
    bag: Path, metadata: BagMetadata, file: Path, on_error: ErrorHandler
) -> None:
    """Report the topics of a bag whose files have none, as metadata.yaml lists them."""
    for topic, count in metadata.message_counts.items():
        if count:
            on_error(
                DataError(
                    f'{bag}: none of the {short_repr(count)} messages on {topic} can be read; '
                    f'metadata.yaml lists them, but no file has the topic: {cure(file)}'
                )
            )


def _files_in(bag: Path) -> list[Path]:
    """Return the files of a folder without a usable metadata.yaml.

    Raises:
        DataError: there are none.
    """
    for suffix in _SUFFIXES:
        endings = suffix, suffix + _COMPRESSED_SUFFIX
        names = {path.name for path in list_folder(bag) if path.name.endswith(endings)}
        # A recorder compresses a file when it is complete, and removes it then. If it was killed
        # in between, its compressed copy may be cut.
        files = [
            bag / name
            for name in sorted(names)
            if name.endswith(suffix) or name.removesuffix(_COMPRESSED_SUFFIX) not in names
        ]
        if files:
            return files
    is_there = (bag / 'metadata.yaml').exists()
    state = 'a metadata.yaml that is empty or damaged, and no' if is_there else 'neither'
    expected = '.mcap or .db3' if is_there else 'a metadata.yaml nor .mcap or .db3'
    raise DataError(
        f'{bag} has {state} {expected} files that can be read without it; recreate the metadata '
        f'with `ros2 bag reindex {bag}`'
    )


def _check_logs(bag: Path, paths: Sequence[Path], on_error: ErrorHandler) -> None:
    """Report messages that a killed recording has left in a database's write-ahead log."""
    for path in paths:
        log = path.with_name(path.name + '-wal')
        if log.is_file() and log.stat().st_size:
            on_error(
                DataError(
                    f'{bag}: {log.name} has messages that are not in {path.name} yet, because the '
                    f"recording was killed; run `sqlite3 {path} 'PRAGMA wal_checkpoint'`"
                )
            )


# ---- files


def _open_files(
    bag: Path,
    paths: Sequence[Path],
    on_error: ErrorHandler,
    decompress: Callable[[bytes], bytes] | None = None,
) -> list[OpenStorage]:
    """Open some files, each by rosbags or record by record."""
    opened = []
    try:
        for path in paths:
            storage = _open_file(bag, path, on_error)
            if storage is not None:
                opened.append(OpenStorage(storage, (path,), decompress))
    except BaseException:
        for each in opened:
            each.storage.close()
        raise
    return opened


def _open_file(bag: Path, path: Path, on_error: ErrorHandler) -> Storage | None:
    """Open one file; None if it cannot be read and `on_error` returned."""
    reader = Reader1(path) if path.suffix == '.bag' else None
    try:
        reader = reader or Reader2(path)
        reader.open()
    except Exception as error:  # noqa: BLE001  # readers of damaged files raise anything
        return _scan_file(bag, path, error, on_error)
    if isinstance(reader, Reader2) and not _is_indexed(reader):
        reader.close()
        return _reported(bag, path, McapScan(path), on_error)
    return reader


def _is_indexed(reader: Reader2) -> bool:
    """Return whether rosbags finds all messages of an opened file by its index.

    A recorder may leave out any part of the index of an MCAP file (`ros2 bag record
    --storage-config-file`). rosbags skips chunks without message index, takes schemas and channels
    from the end of the file, and without chunk index needs messages by rising time.
    """
    if not hasattr(reader.storage, 'chunks'):
        return True  # SQLite
    counts = [sum(chunk.channel_count.values()) for chunk in reader.storage.chunks]
    has_types = all(
        connection.msgtype != _NO_SCHEMA or connection.ext.serialization_format != 'cdr'
        for connection in reader.connections
    )
    is_complete = reader.message_count == sum(counts)
    return bool(reader.connections and counts) and has_types and all(counts) and is_complete


def _scan_file(bag: Path, path: Path, error: Exception, on_error: ErrorHandler) -> Storage | None:
    """Open a file that rosbags refuses; None if it cannot be read and `on_error` returned.

    Args:
        bag: for messages.
        path: of the file.
        error: of rosbags.
        on_error: see `open_storages`.
    """
    try:
        if path.suffix == '.mcap':
            return _scan_mcap(bag, path, on_error)
        if path.suffix == '.db3':
            return _reported(bag, path, SqliteScan(path), on_error)
    except DataError:
        raise
    except Exception as second:  # noqa: BLE001  # readers of damaged files raise anything
        error = second
    kind = 'ROS 1' if '.bag' in path.suffixes else 'rosbag2'
    name = '' if path == bag else f'{path.name}: '
    on_error(
        DataError(f'{bag} cannot be read as a {kind} bag: {name}{one_line(error)}; {cure(path)}')
    )
    return None


def _scan_mcap(bag: Path, path: Path, on_error: ErrorHandler) -> McapScan:
    """Open an MCAP file record by record; report what is damaged.

    Raises:
        OSError, ValueError: as `McapScan`.
    """
    if path.stat().st_size == 0:
        raise ValueError('the file is empty')
    if starts_as_mcap(path) and is_cut(path):  # first: reading a large file takes a minute
        on_error(DataError(f'{bag}: {path.name} is cut, its end is missing; {cure(path)}'))
        return McapScan(path)
    return _reported(bag, path, McapScan(path), on_error)


def _reported(
    bag: Path, path: Path, scan: McapScan | SqliteScan, on_error: ErrorHandler
) -> McapScan | SqliteScan:
    """Return a scanned file; report its damage."""
    is_copy = path.parent != bag and path != bag  # of a file that was compressed as a whole
    try:
        for damage in scan.damage:
            advice = 'copy the bag again' if is_copy else cure(path)
            on_error(DataError(f'{bag}: {path.name}: {damage}; {advice}'))
    except BaseException:
        scan.close()
        raise
    return scan


def _decompressed_file(
    bag: Path, path: Path, on_error: ErrorHandler, stack: contextlib.ExitStack
) -> Path | None:
    """Return a file that is not compressed as a whole; None if nothing of it can be read."""
    if path.suffix != _COMPRESSED_SUFFIX:
        return path
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    target = folder / path.stem
    try:
        with path.open('rb') as raw, zstd.open(raw, 'rb') as source, target.open('wb') as sink:
            _copy(source, sink, folder)
    except Exception as error:  # noqa: BLE001  # a damaged file raises many types
        is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        advice = 'copy it again'
        if is_full:
            advice = f'set TMPDIR to a larger folder than {folder.parent}'
        on_error(
            DataError(f'{bag}: {path.name} cannot be decompressed ({one_line(error)}); {advice}')
        )
        return None if not target.exists() or not target.stat().st_size else target
    return target


def _copy(source: IO[bytes], sink: IO[bytes], folder: Path) -> None:
    """Copy a file into a folder, and leave space there for others: 30 kB may become 1 GB.

    Raises:
        OSError: there is no space left.
    """
    while block := source.read(_BLOCK_SIZE):
        disk = shutil.disk_usage(folder)
        if disk.free < min(_SPACE_LEFT, disk.total // 20):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sink.write(block)


def _decompress_if_compressed(raw_message: bytes) -> bytes:
    """Return the data of a message that may be compressed.

    Raises:
        Exception: of any type, if it is damaged.
    """
    return decompress_zstd(raw_message) if raw_message[:4] == ZSTD_MAGIC else raw_message
