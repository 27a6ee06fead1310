# SPDX-License-Identifier: Apache-2.0
"""Read what a .bin or .pth file claims to hold, without making a tensor or running its code.

torch.load allocates what a file claims before it reads the bytes, also with weights_only=True: a
stride of 0, a compressed entry or a call of bytearray in a file of 1 MB takes 100 GB. Here the
pickle is read as data: the few opcodes that torch.save writes, no class, no call. The claims are
compared with the bytes of the file.

Formats: the zip archive of PyTorch 1.6 and later, and the older plain pickles.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from lisa_ros.error_text import short_repr

MAX_PICKLE_BYTES = 4 * 2**20  # of names, shapes and offsets; a 13B model has 0.3 MB
_MAX_DIRECTORY_BYTES = 8 * 2**20  # of the zip archive's list of entries
_MAX_END_BYTES = 2**16 + 98  # of the end of a zip archive: its comment and three records
_MAX_SHARED = 2  # tied weights show their bytes twice
_STORAGES = {
    'torch.FloatStorage': torch.float32,
    'torch.HalfStorage': torch.float16,
    'torch.BFloat16Storage': torch.bfloat16,
    'torch.DoubleStorage': torch.float64,
    'torch.LongStorage': torch.int64,
    'torch.IntStorage': torch.int32,
    'torch.ShortStorage': torch.int16,
    'torch.CharStorage': torch.int8,
    'torch.ByteStorage': torch.uint8,
    'torch.BoolStorage': torch.bool,
    'torch.storage.UntypedStorage': torch.uint8,
}
_TENSORS = (  # their first arguments: storage, offset, shape, stride
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
    'torch._utils._rebuild_tensor_v3',
)
_PARAMETERS = ('torch._utils._rebuild_parameter', 'torch._utils._rebuild_parameter_with_state')
_MARK = object()
_LITERALS = {
    *('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT'),
    *('BINUNICODE', 'SHORT_BINSTRING', 'BINSTRING'),
}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}
_STEPS = {  # methods of _PickleReader
    *('MARK', 'EMPTY_DICT', 'EMPTY_LIST', 'TUPLE', 'APPEND', 'APPENDS', 'SETITEM', 'SETITEMS'),
    *('GLOBAL', 'BINPERSID', 'REDUCE', 'BUILD'),
}


@dataclass(frozen=True)
class StorageClaim:
    """A block of numbers that a file claims to hold."""

    key: str
    bytes: int  # of all its numbers
    item_bytes: int  # of one number


@dataclass(frozen=True)
class TensorClaim:
    """A tensor that a file claims to hold."""

    storage: StorageClaim
    offset: int  # [numbers]
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # [numbers]
    item_bytes: int  # of one number

    @property
    def bytes(self) -> int:
        """Bytes of the tensor's numbers, as it needs them in memory."""
        return math.prod(self.shape) * self.item_bytes

    @property
    def end(self) -> int:
        """Bytes of the storage up to the tensor's last number."""
        if 0 in self.shape:
            return self.offset * self.item_bytes
        steps = zip(self.shape, self.stride, strict=True)
        last = self.offset + sum((size - 1) * stride for size, stride in steps)
        return (last + 1) * self.item_bytes


class ClaimError(ValueError):
    """A file claims more than its bytes can hold, or is damaged."""


class UnsafeError(ClaimError):
    """A file contains more than tensors."""


def read_claims(path: Path) -> dict[str, TensorClaim]:
    """Return the tensors that a .bin or .pth file claims to hold, each checked against its bytes.

    Raises:
        ClaimError: a claim does not fit the bytes of the file, or the file is damaged.
        UnsafeError: the file contains more than tensors.
    """
    try:
        with path.open('rb') as file:
            is_zip = file.read(4) == b'PK\x03\x04'
        claims = _read_zip(path) if is_zip else _read_plain(path)
    except ClaimError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ClaimError(f'the zip archive is damaged: {error}') from error
    except Exception as error:  # damaged bytes make the opcode reader raise many types
        raise ClaimError(f'the pickle is damaged: {type(error).__name__}: {error}') from error
    return claims


# ---- zip archives


def _read_zip(path: Path) -> dict[str, TensorClaim]:
    size = path.stat().st_size
    with path.open('rb') as file:
        _check_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        sizes = _stored_sizes(entries, size)
        prefix, pickle_entry = _find_pickle(entries)
        content = _stored_bytes(file, pickle_entry)
    reader = _PickleReader()
    claims = _tensors_by_name(reader.read(io.BytesIO(content)))
    for storage in reader.storages.values():
        present = sizes.get(f'{prefix}/data/{storage.key}')
        if present is None or storage.bytes > present:
            raise ClaimError(
                f'storage {short_repr(storage.key)} claims {storage.bytes} bytes, the archive has '
                f'{present or 0}'
            )
    _check_sum(claims, sum(sizes.values()))
    return claims


def _check_directory(file: io.BufferedIOBase, size: int) -> None:
    """Check the list of entries before zipfile makes objects of it.

    It must be small and end where the records of the archive's end begin: otherwise zipfile and
    torch may read two different lists.
    """
    start = max(0, size - _MAX_END_BYTES)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(b'PK\x05\x06')
    if end < 0 or len(tail) < end + 22:
        raise ClaimError('the end of the zip archive is missing')
    directory, offset = struct.unpack_from('<II', tail, end + 12)
    if tail[max(0, end - 20) : end].startswith(b'PK\x06\x07'):  # a large archive
        (record,) = struct.unpack_from('<Q', tail, end - 12)
        end -= 76
        if end < 0 or record != start + end:
            raise ClaimError('the zip archive has two ends')
        directory, offset = struct.unpack_from('<QQ', tail, end + 40)
    if directory > min(size, _MAX_DIRECTORY_BYTES):
        raise ClaimError(f'the zip archive claims a list of entries of {directory} bytes')
    if offset + directory != start + end:
        raise ClaimError('the zip archive has bytes before its beginning or its end')


def _stored_sizes(entries: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """Return the bytes of each entry; torch.save stores them uncompressed."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ClaimError(
                f'entry {short_repr(entry.filename)} is compressed and claims {entry.file_size} '
                'bytes; torch.save stores entries uncompressed'
            )
    sizes = {entry.filename: entry.file_size for entry in entries}
    if len({name.casefold() for name in sizes}) < len(entries):
        raise ClaimError('the zip archive has two entries of one name')
    if sum(sizes.values()) > size:
        raise ClaimError(
            f'the entries claim {sum(sizes.values())} bytes, the file has {size}: they overlap'
        )
    return sizes


def _find_pickle(entries: list[zipfile.ZipInfo]) -> tuple[str, zipfile.ZipInfo]:
    """Return the archive's own folder and the entry of its pickle."""
    prefix = entries[0].filename.partition('/')[0] if entries else ''
    found = {entry.filename: entry for entry in entries}.get(f'{prefix}/data.pkl')
    if found is None or any(not entry.filename.startswith(f'{prefix}/') for entry in entries):
        raise ClaimError('the zip archive is not one of torch.save: it has no data.pkl')
    if found.file_size > MAX_PICKLE_BYTES:
        raise ClaimError(
            f'its names and shapes take {found.file_size} bytes; expected at most '
            f'{MAX_PICKLE_BYTES}'
        )
    return prefix, found


def _stored_bytes(file: io.BufferedIOBase, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of an uncompressed entry; torch does not check its CRC, either."""
    file.seek(entry.header_offset + 26)
    name_length, extra_length = struct.unpack('<HH', file.read(4))
    file.seek(entry.header_offset + 30 + name_length + extra_length)
    return file.read(entry.file_size)


# ---- plain pickles, of PyTorch before 1.6


def _read_plain(path: Path) -> dict[str, TensorClaim]:
    size = path.stat().st_size
    with path.open('rb') as file:
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    for _ in range(3):  # a magic number, the protocol's number, sizes of types
        _PickleReader().read(stream)
    reader = _PickleReader()
    claims = _tensors_by_name(reader.read(stream))
    _PickleReader().read(stream)  # the keys of the storages that follow
    total = sum(storage.bytes for storage in reader.storages.values())
    if total > size:
        raise ClaimError(f'its tensors claim {total} bytes, the file has {size}')
    _check_sum(claims, total)
    return claims


# ---- claims


def _tensors_by_name(content: object) -> dict[str, TensorClaim]:
    """Return the content of a pickle if it is a dict of tensors."""
    if not isinstance(content, dict):
        raise UnsafeError(f'holds {type(content).__name__}; expected weights by name')
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, TensorClaim):
            kind = 'dict' if isinstance(value, dict) else type(value).__name__
            raise UnsafeError(f'holds {short_repr(name)} of type {kind}; expected weights by name')
    return content


def _check_sum(claims: dict[str, TensorClaim], present: int) -> None:
    """Compare the sum of all tensors with the bytes present: many may show the same bytes."""
    total = sum(claim.bytes for claim in claims.values())
    if total > _MAX_SHARED * present:
        raise ClaimError(f'its tensors claim {total} bytes together and share {present}')


class _PickleReader:
    """Reads a pickle of tensors as data; see the module's docstring."""

    def __init__(self) -> None:
        self.storages: dict[str, StorageClaim] = {}  # by key
        self._stack: list = []
        self._memo: dict[int, object] = {}

    def read(self, stream: io.BytesIO) -> object:
        """Return the content of the next pickle in a stream.

        Raises:
            UnsafeError: it calls something, or has an opcode that torch.save does not write.
            Exception: of any type, if it is damaged.
        """
        for opcode, argument, _ in pickletools.genops(stream):
            self._execute(opcode.name, argument)
        (content,) = self._stack
        return content

    def _execute(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ('BINPUT', 'LONG_BINPUT'):
            self._memo[argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(self._memo[argument])
        elif name in _STEPS:
            getattr(self, f'_{name.lower()}')(argument)
        elif name not in ('PROTO', 'STOP'):
            raise UnsafeError(f'has the opcode {name}, which torch.save does not write')

    def _mark(self, _: object) -> None:
        self._stack.append(_MARK)

    def _empty_dict(self, _: object) -> None:
        self._stack.append({})

    def _empty_list(self, _: object) -> None:
        self._stack.append([])

    def _tuple(self, _: object) -> None:
        self._stack.append(tuple(self._pop_marked()))

    def _append(self, _: object) -> None:
        value = self._stack.pop()
        self._top(list).append(value)

    def _appends(self, _: object) -> None:
        values = self._pop_marked()
        self._top(list).extend(values)

    def _setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _setitems(self, _: object) -> None:
        self._set_items(self._pop_marked())

    def _global(self, argument: str) -> None:
        self._stack.append(_Global('.'.join(argument.split(' '))))

    def _binpersid(self, _: object) -> None:
        storage = _storage(self._stack.pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ClaimError(f'has two storages of the key {short_repr(storage.key)}')
        self._stack.append(storage)

    def _reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_call(function, arguments))

    def _build(self, _: object) -> None:
        self._stack.pop()  # the versions of modules, which no weight needs
        self._top(dict)

    def _set_items(self, items: list) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key in target:
                raise ClaimError(f'has the key {short_repr(key)} twice')
            target[key] = value

    def _pop_marked(self) -> list:
        """Remove and return the items above the last mark."""
        start = next(i for i in reversed(range(len(self._stack))) if self._stack[i] is _MARK)
        items = self._stack[start + 1 :]
        del self._stack[start:]
        return items

    def _top(self, kind: type) -> object:
        if not isinstance(self._stack[-1], kind):
            raise UnsafeError(f'changes a {type(self._stack[-1]).__name__}')
        return self._stack[-1]


@dataclass(frozen=True)
class _Global:
    """A class or function that a pickle names; it is never imported."""

    name: str


def _storage(persistent_id: tuple) -> StorageClaim:
    """Return the storage of ('storage', its class, key, location, number of numbers)."""
    word, kind, key, _, count = persistent_id[:5]
    dtype = _STORAGES.get(kind.name) if isinstance(kind, _Global) else None
    if word != 'storage' or dtype is None:
        raise UnsafeError(f'has a storage of {short_repr(kind)}, no block of real numbers')
    _check_sizes(count)
    return StorageClaim(str(key), count * dtype.itemsize, dtype.itemsize)


def _call(function: object, arguments: tuple) -> object:
    """Return the claim of what a call would make.

    Raises:
        UnsafeError: it makes something else than a tensor or an empty OrderedDict.
    """
    name = function.name if isinstance(function, _Global) else None
    if name == 'collections.OrderedDict' and arguments == ():
        return {}
    if name in _PARAMETERS and isinstance(arguments[0], TensorClaim):
        return arguments[0]
    if name in _TENSORS:
        return _tensor(arguments, name.endswith('_v3'))
    raise UnsafeError(f'calls {name or short_repr(function)}')


def _tensor(arguments: tuple, has_dtype: bool) -> TensorClaim:
    """Return the claim of a rebuilt tensor; `has_dtype`: its storage does not tell the dtype."""
    storage, offset, shape, stride = arguments[:4]
    item_bytes = storage.item_bytes
    if has_dtype:
        dtype = getattr(torch, arguments[6].name.removeprefix('torch.'), None)
        if not isinstance(dtype, torch.dtype):
            raise UnsafeError(f'has a tensor of the type {short_repr(arguments[6])}')
        item_bytes = dtype.itemsize
    _check_sizes(offset, *shape, *stride)
    if len(shape) != len(stride):
        raise ClaimError(
            f'has a tensor of shape {short_repr(shape)} and stride {short_repr(stride)}'
        )
    tensor = TensorClaim(storage, offset, tuple(shape), tuple(stride), item_bytes)
    claimed = max(tensor.bytes, tensor.end)
    if claimed > storage.bytes:
        raise ClaimError(
            f'a tensor of shape {short_repr(tensor.shape)} and stride {short_repr(tensor.stride)} '
            f'claims {claimed} bytes, its storage has {storage.bytes}'
        )
    return tensor


def _check_sizes(*sizes: object) -> None:
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ClaimError(f'has a size of {short_repr(sizes)}; expected whole numbers')
