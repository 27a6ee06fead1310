# SPDX-License-Identifier: Apache-2.0
"""Token rows of the language model: image tokens in place, and conversations in shared rows.

A conversation is a row of T token ids with one placeholder, IMAGE_TOKEN_INDEX. The language model
reads P image tokens in its place, so its row has L = T - 1 + P positions. `pack` puts all
conversations about one image into one row, so that their common start is read once.

Letters as in lisa.py: B images, Q conversations, T, P, L; R positions of a packed row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lisa_ros.errors import QueryError

IMAGE_TOKEN_INDEX = -200  # placeholder of the image among token ids, as in LLaVA; never embedded
IGNORE_INDEX = -100  # label of a token without loss; PyTorch's default for cross-entropy


def image_positions(input_ids: Tensor) -> Tensor:
    """Return the position of the image placeholder in each row of (Q, T), (Q,) long.

    Raises:
        QueryError: a row has not exactly one IMAGE_TOKEN_INDEX.
    """
    is_image = input_ids == IMAGE_TOKEN_INDEX
    counts = is_image.sum(1)
    if (counts != 1).any():
        raise QueryError(
            f'the prompt has {int(counts[counts != 1][0])} image placeholders; expected exactly '
            'one: build it with lisa_ros.perception.prompts and ask about one image at a time'
        )
    return is_image.long().argmax(1)


def expand_placeholder(rows: Tensor, positions: Tensor, image_tokens: int, fill: float) -> Tensor:
    """Replace the image placeholder of each row by P copies of `fill`.

    Args:
        rows: (Q, T).
        positions: (Q,) long, position of the placeholder in each row.
        image_tokens: P.
        fill: value of the image tokens.

    Returns:
        (Q, L) of the type of `rows`.
    """
    columns = torch.arange(rows.shape[1] - 1 + image_tokens, device=rows.device)
    offsets = columns - positions[:, None]  # from the first image token
    sources = torch.where(offsets < 0, offsets, offsets - image_tokens + 1) + positions[:, None]
    is_image = (offsets >= 0) & (offsets < image_tokens)
    return rows.gather(1, sources.masked_fill(is_image, 0)).masked_fill(is_image, fill)


@dataclass(frozen=True)
class PackedRows:
    """How to read Q conversations in B rows, one row for each image."""

    sources: Tensor  # (B, R) long, rows of a table: B * P image tokens, then Q * T text tokens
    position_ids: Tensor  # (B, R) long, as if each conversation had a row of its own
    attention_mask: Tensor  # (B, R, R) bool, causal; other conversations are masked
    columns: Tensor  # (Q, L) long, where each position of a conversation is in the B * R states


class _RowBuilder:
    """The packed row of one image under construction."""

    def __init__(self) -> None:
        self.prefix: np.ndarray | None = None  # token ids before the image
        self.length = 0
        self.sources: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.owners: list[np.ndarray] = []  # 0: common to all conversations; else index + 1

    def append(self, sources: np.ndarray, first_position: int, owner: int) -> np.ndarray:
        """Append tokens at consecutive positions; return their columns in the row."""
        steps = np.arange(len(sources))
        columns = self.length + steps
        self.sources.append(sources)
        self.positions.append(first_position + steps)
        self.owners.append(np.full_like(steps, owner))
        self.length += len(sources)
        return columns


def pack(
    input_ids: Tensor,
    image_index: Tensor,
    positions: Tensor,
    lengths: Tensor,
    image_count: int,
    image_tokens: int,
) -> PackedRows:
    """Plan one row for each image: the common start, then the rest of each conversation.

    States of padding are those of the conversation's last token.

    Args:
        input_ids: (Q, T) long, right-padded.
        image_index: (Q,) long, the image of each conversation.
        positions: (Q,) long, position of the image placeholder.
        lengths: (Q,) long, number of positions of each conversation without its padding, with P
            image tokens instead of the placeholder.
        image_count: B.
        image_tokens: P.

    Raises:
        QueryError: two conversations about one image differ before it.
    """
    ids, images = input_ids.cpu().numpy(), image_index.tolist()
    text_length = ids.shape[1]
    builders = [_RowBuilder() for _ in range(image_count)]
    columns = np.empty((len(ids), text_length - 1 + image_tokens), np.int64)
    for query, (image, position, length) in enumerate(
        zip(images, positions.tolist(), lengths.tolist(), strict=True)
    ):
        builder, start = builders[image], position + image_tokens
        text = image_count * image_tokens + query * text_length + np.arange(text_length)
        if builder.prefix is None:
            builder.prefix = ids[query, :position]
            image_rows = image * image_tokens + np.arange(image_tokens)
            builder.append(np.concatenate([text[:position], image_rows]), 0, owner=0)
        if not np.array_equal(builder.prefix, ids[query, :position]):
            raise QueryError(
                'conversations about one image differ before the image, so they cannot be read '
                'packed: use one conversation template, or packed=False'
            )
        rest = text[position + 1 : position + 1 + length - start]
        columns[query, :start] = np.arange(start)
        columns[query, start:length] = builder.append(rest, start, owner=query + 1)
        columns[query, length:] = columns[query, length - 1]
    row_length, device = max(builder.length for builder in builders), input_ids.device
    owners = _pad([builder.owners for builder in builders], row_length, -1, device)
    is_own = owners[:, :, None] == owners[:, None, :]
    return PackedRows(
        sources=_pad([builder.sources for builder in builders], row_length, 0, device),
        position_ids=_pad([builder.positions for builder in builders], row_length, 0, device),
        attention_mask=(is_own | (owners == 0)[:, None, :]).tril(),
        columns=torch.from_numpy(np.array(images)[:, None] * row_length + columns).to(device),
    )


def _pad(rows: list[list[np.ndarray]], length: int, fill: int, device: torch.device) -> Tensor:
    """Return (B, length) long: each row joined from its parts and padded on the right."""
    padded = np.full((len(rows), length), fill)
    for row, parts in zip(padded, rows, strict=True):
        joined = np.concatenate(parts) if parts else row[:0]
        row[: len(joined)] = joined
    return torch.from_numpy(padded).to(device)
