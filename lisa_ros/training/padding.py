# SPDX-License-Identifier: Apache-2.0
"""Pads tokenized conversations of different lengths into one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lisa_ros.model.lisa import Conversations
from lisa_ros.model.packing import IGNORE_INDEX


def pad_conversations(
    rows: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    image_index: Sequence[int],
    pad_token_id: int,
) -> Conversations:
    """Return conversations padded on the right to the longest one.

    Args:
        rows: Q lists of token ids.
        labels: Q lists of labels, each as long as its row; IGNORE_INDEX where no loss is computed.
        image_index: the image of each conversation.
        pad_token_id: the token to pad rows with; labels are padded with IGNORE_INDEX.
    """
    longest = max(map(len, rows))
    return Conversations(
        input_ids=torch.tensor([[*row, *[pad_token_id] * (longest - len(row))] for row in rows]),
        labels=torch.tensor([[*row, *[IGNORE_INDEX] * (longest - len(row))] for row in labels]),
        attention_mask=torch.tensor(
            [[True] * len(row) + [False] * (longest - len(row)) for row in rows]
        ),
        image_index=torch.tensor(image_index),
    )
