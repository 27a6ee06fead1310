# SPDX-License-Identifier: Apache-2.0
"""Finds attention targets: tokens of answers, with the image region that each should attend to.

In "The milk 42 56, left of it 22 58. It is the red mug, [SEG]" these tokens have a target:

    token                              its target
    each number of a position (42 56)  the image tokens around that position
    each size in cm                    the object with that size
    each token of an object name       the object. The name must follow "It is the", or be in a
                                       list ("The milk and the lemon are food")
    [SEG]                              the object

Two kinds of names have no target: names that result from a comparison of two numbers ("The pan
6 cm, the bowl 8 cm. It is the pan"), and names of which several follow one "It is".
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lisa_ros.model.packing import IGNORE_INDEX
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop.answer_text import NUMBER_WORDS
from lisa_ros.training.tabletop.batches import AttentionTargets, QueryBatch

_POSITION_STD = 0.06  # standard deviation of the target around a position [fraction of a side]


class PositionToken(NamedTuple):
    """A number of a position in an answer."""

    row: int
    column: int
    xy: tuple[float, float]  # the position [fraction of the image's width, height]


class ObjectToken(NamedTuple):
    """A token that refers to an object, with the index of the object's mask in the batch."""

    row: int
    column: int
    mask: int


@dataclass(frozen=True)
class GroundedTokens:
    """The supervised tokens of a batch that refer to positions or objects."""

    positions: list[PositionToken] = field(default_factory=list)
    # `mask` is an index in `size_masks`
    sizes: list[ObjectToken] = field(default_factory=list)
    # `mask` is the index in `masks` of the next [SEG]
    names: list[ObjectToken] = field(default_factory=list)


class AttentionTargetFinder:
    """Finds the attention targets in batches of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        """Find the tokens of a tokenizer with one token per number, see `has_number_tokens`."""
        self._values = {tokenizer.encode(number)[0]: int(number) for number in NUMBER_WORDS}
        self._seg = tokenizer.seg_token_id
        # the numbers in front make the tokenizer treat the words as the middle of an answer
        self._it_is_the = tokenizer.encode('86 42. It is the')[3:]
        self._comma, self._the = tokenizer.encode('86 42, the')[2:]

    def find(self, batch: QueryBatch, side: int) -> AttentionTargets:
        """Return the targets of a batch for side x side image tokens.

        The batch must be on the CPU: it is parsed token by token. Tokens whose object is not
        visible are left out.
        """
        tokens = self.parse(batch)
        listed = [
            ObjectToken(row, column, mask)
            for mask, (row, first, end) in enumerate(batch.list_spans.tolist())
            for column in range(first, end)
        ]
        object_tokens = (
            (tokens.sizes, batch.size_masks),
            (self._seg_tokens(batch), batch.masks),
            (tokens.names, batch.masks),
            (listed, batch.list_masks),
        )
        attention = [_position_attention(tokens.positions, side)]
        places = [(token.row, token.column) for token in tokens.positions]
        for group, masks in object_tokens:
            group_masks = masks[[token.mask for token in group]]
            attention.append(_object_attention(group_masks, batch.valid_size, side))
            places += [(token.row, token.column) for token in group]
        targets = torch.cat(attention)
        rows, columns = torch.tensor(places, dtype=torch.long).reshape(-1, 2).unbind(1)
        is_name = torch.arange(len(places)) >= len(places) - len(tokens.names) - len(listed)
        visible = targets.sum(1) > 0
        return AttentionTargets(*(tensor[visible] for tensor in (rows, columns, targets, is_name)))

    def _seg_tokens(self, batch: QueryBatch) -> list[ObjectToken]:
        """Return each supervised [SEG]."""
        columns = (batch.inputs.input_ids == self._seg).nonzero().tolist()
        return [
            ObjectToken(row, column, mask)
            for mask, (row, column) in enumerate(columns)
            if batch.inputs.labels[row, column] == self._seg
        ]

    def parse(self, batch: QueryBatch) -> GroundedTokens:
        """Return the positions, sizes and names in the supervised answers of a batch."""
        tokens = GroundedTokens()
        seg_ends = (batch.inputs.input_ids == self._seg).sum(1).cumsum(0).tolist()
        for row, labels in enumerate(batch.inputs.labels.tolist()):
            input_ids = batch.inputs.input_ids[row].tolist()
            column = 0
            while column < len(labels):
                if self._is_number(labels, column) and self._is_number(labels, column + 1):
                    # a number is in hundredths, rounded down to an even one: add half a step
                    x, y = ((self._values[n] + 1) / 100 for n in labels[column : column + 2])
                    tokens.positions.append(PositionToken(row, column, (x, y)))
                    tokens.positions.append(PositionToken(row, column + 1, (x, y)))
                    column += 1
                elif self._is_number(labels, column):
                    tokens.sizes.append(ObjectToken(row, column, len(tokens.sizes)))
                else:
                    name = self._name_columns(labels, column)
                    if name:
                        seg = seg_ends[row] - input_ids[column:].count(self._seg)
                        tokens.names.extend(ObjectToken(row, i, seg) for i in name)
                column += 1
        return tokens

    def _is_number(self, labels: list[int], column: int) -> bool:
        return column < len(labels) and labels[column] in self._values

    def _name_columns(self, labels: list[int], column: int) -> range:
        """Return the columns of the name after an "It is the" that starts at `column`.

        The range is empty if there is none, if the name is the result of a comparison, or if
        several names follow.
        """
        start = column + len(self._it_is_the)
        if labels[column:start] != self._it_is_the:
            return range(0)
        distances = (i for i, label in enumerate(labels[column::-1]) if label == IGNORE_INDEX)
        answer_start = column - next(distances, column)
        is_comparison = (self._comma, self._the) in itertools.pairwise(labels[answer_start:column])
        end = start
        while end < len(labels) and labels[end] not in (self._comma, self._seg, IGNORE_INDEX):
            end += 1
        # "the mug and the pan", "the mug, the pan"
        is_several = self._the in labels[start : end + 2]
        return range(0) if is_comparison or is_several else range(start, end)


def _position_attention(tokens: list[PositionToken], side: int) -> Tensor:
    """Return the targets (n, P) of positions: a Gaussian around each."""
    xy = torch.tensor([token.xy for token in tokens]).reshape(-1, 2)
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing='ij')
    patches = torch.stack([x.flatten(), y.flatten()], dim=1)
    squared_distance = (xy[:, None] - patches).square().sum(-1)  # (n, P)
    return (-squared_distance / (2 * _POSITION_STD**2)).softmax(1)


def _object_attention(masks: Tensor, valid_size: tuple[int, int], side: int) -> Tensor:
    """Return the targets (n, P) of the objects of masks (n, S, S); zeros for an empty mask.

    CLIP gets the whole image, resized to a square, without SAM's padding. The weight of a patch
    is the square of the share that the object covers, so that patches at its edge count less.
    """
    if len(masks) == 0:
        return torch.zeros(0, side * side)
    height, width = valid_size
    visible = masks[:, :height, :width].float()
    coverage = F.adaptive_avg_pool2d(visible, (side, side)).flatten(1).square()
    return coverage / coverage.sum(1, keepdim=True).clamp(min=1e-9)
