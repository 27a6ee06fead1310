# SPDX-License-Identifier: Apache-2.0
"""Keys and values of the positions that a language model has read.

One tensor holds those of all layers, with room for more positions, so that a new token is written
and nothing is copied (transformers' DynamicCache copies everything for each token).

Letters: N layers, B rows, G heads of keys and values, P positions, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KeyValues:
    """A cache that one thread at a time extends."""

    def __init__(self, storage: Tensor, length: int = 0):
        """Wrap memory.

        Args:
            storage: (N, 2, B, G, P, d) keys and values.
            length: positions that are in use, from the first one.
        """
        self._storage = storage
        self.length = length

    @property
    def layers(self) -> int:
        """How many layers write here."""
        return self._storage.shape[0]

    @property
    def capacity(self) -> int:
        """How many positions have room."""
        return self._storage.shape[4]

    @property
    def bytes_per_position(self) -> int:
        """Memory of a position."""
        return self._storage[..., 0, :].numel() * self._storage.element_size()

    @property
    def bytes(self) -> int:
        """Memory, with that of positions that are not in use."""
        return self.capacity * self.bytes_per_position

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next positions of a layer, (B, G, n, d) each; return all of the layer's.

        More memory is taken if there is no room.

        Call `advance` when all layers are written.
        """
        end = self.length + keys.shape[2]
        if end > self.capacity:
            self._storage = self.copy(self.length, max(end, 2 * self.capacity))._storage
        own = self._storage[layer]
        own[0, :, :, self.length : end] = keys
        own[1, :, :, self.length : end] = values
        return own[0, :, :, :end], own[1, :, :, :end]

    def advance(self, count: int) -> None:
        """Count `count` positions, which were written, as in use."""
        self.length += count

    def keep(self, start: int, positions: Sequence[int]) -> None:
        """Keep, of the positions from `start` on, only some; they move together.

        Args:
            start: all positions before it stay.
            positions: of those to keep, ascending.
        """
        end = start + len(positions)
        if list(positions) != list(range(start, end)):
            index = torch.tensor(positions, device=self._storage.device)
            self._storage[..., start:end, :] = self._storage[..., index, :]
        self.length = end

    def keep_each(self, start: int, columns: Tensor) -> None:
        """Keep, of the positions from `start` on, other ones in each row; they move together.

        Args:
            start: all positions before it stay.
            columns: (B, n) long, those to keep, ascending in each row.
        """
        end = start + columns.shape[1]
        if end == start:
            self.length = end
            return
        for row, own in enumerate(columns.to(self._storage.device)):
            part = self._storage[:, :, row]
            part[..., start:end, :] = part[..., own, :]
        self.length = end

    def extend(self, source: KeyValues, start: int, end: int) -> None:
        """Append the positions `start` to `end` of another cache; take more memory if needed."""
        stop = self.length + end - start
        if stop > self.capacity:
            self._storage = self.copy(self.length, max(stop, 2 * self.capacity))._storage
        self._storage[..., self.length : stop, :] = source._storage[..., start:end, :]
        self.length = stop

    def load(self, source: KeyValues) -> None:
        """Replace all positions by those of another cache, which have room; the memory stays."""
        self._storage[..., : source.length, :] = source._storage[..., : source.length, :]
        self.length = source.length

    def fixed(self, capacity: int, position: Tensor) -> FixedKeyValues:
        """Return the first `capacity` positions, to be written where `position` says."""
        return FixedKeyValues(self._storage[..., :capacity, :], position)

    def rows(self, rows: Sequence[int]) -> KeyValues:
        """Return a new cache with some of the rows."""
        index = torch.tensor(rows, device=self._storage.device)
        return KeyValues(self._storage[:, :, index], self.length)

    def view(self, length: int, rows: slice = slice(None)) -> KeyValues:
        """Return the first `length` positions of some rows in the same memory.

        It has no room, so that who extends it gets memory of its own.
        """
        return KeyValues(self._storage[:, :, rows, :, :length], length)

    def write_row(self, row: int, source: KeyValues) -> None:
        """Copy the positions of a cache of one row into the first positions of a row."""
        self._storage[:, :, row, :, : source.length] = source._storage[:, :, 0, :, : source.length]

    def clear(self, start: int = 0, end: int | None = None) -> None:
        """Set the memory of the positions `start` to `end` to zero; None: to the last one."""
        self._storage[..., start:end, :].zero_()

    def copy(self, length: int, capacity: int) -> KeyValues:
        """Return a new cache with room for `capacity` positions and the first `length` of this."""
        shape = (*self._storage.shape[:4], capacity, self._storage.shape[5])
        storage = self._storage.new_empty(shape)
        storage[..., :length, :] = self._storage[..., :length, :]
        return KeyValues(storage, length)


class FixedKeyValues:
    """Keys and values in memory that stays, for a step that is captured as a CUDA graph.

    A layer gets all positions; the mask of attention tells which of them count.
    """

    length = 0  # what is in use is not known on the host

    def __init__(self, storage: Tensor, position: Tensor):
        """Wrap memory.

        Args:
            storage: (N, 2, B, G, P, d) keys and values.
            position: (1,) long, on the same device: where the next write goes.
        """
        self._storage, self._position = storage, position

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write one position of a layer, (B, G, 1, d) each; return all P of the layer."""
        own = self._storage[layer]
        own[0].index_copy_(2, self._position, keys)
        own[1].index_copy_(2, self._position, values)
        return own[0], own[1]

    def advance(self, count: int) -> None:
        """Do nothing: the owner of `position` moves it."""
