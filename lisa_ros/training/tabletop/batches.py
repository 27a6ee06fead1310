# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes and drawn requests become the batches that LISA learns from.

Pixels and words go through `images` and `prompts`, so that training and serving see the same.

Letters: B pictures, Q conversations, T tokens, N masks, Z sizes told in cm, L names in lists, S
side of SAM's square input, K kinds, MOST things of one picture.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lisa_ros.model import image_processing
from lisa_ros.model.lisa import IGNORED, Conversations, LisaBatch, LisaConfig
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception import prompts
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.rendering import PART_FLAG
from lisa_ros.tabletop.scene_graph import (
    PLACES,
    SUPERLATIVES,
    VISIBLE,
    SceneGraph,
    nearest_in_relation,
    on_side,
)
from lisa_ros.training.tabletop.dataset import to_sam_square

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

KIND_INDEX = {name: i + 1 for i, name in enumerate(OBJECT_CATEGORIES)}  # 0 is "no thing"
COLOUR_INDEX = {name: i + 1 for i, name in enumerate(COLOURS)}  # 0 is "no colour with a name"
MAX_OBJECTS = 16  # ids of things are below it


@dataclass(frozen=True)
class AttentionTargets:
    """What is said by looking, and where to: n words."""

    rows: Tensor  # (n,) long, conversations
    words: Tensor  # (n,) long, places of the words in input_ids
    wanted: Tensor  # (n, P) float, of each image token, summing to one
    names: Tensor  # (n,) bool, words of a name, and of a list between its names

    def to(self, device: torch.device | str) -> AttentionTargets:
        """Return the same on `device`."""
        return AttentionTargets(*(part.to(device) for part in vars(self).values()))


@dataclass(frozen=True, kw_only=True)
class QueryBatch:
    """Requests about pictures as LISA reads them, and their truth."""

    batch: Conversations
    truth: Tensor  # (N, S, S) uint8 0 or 1, in SAM's square, [SEG] by [SEG] as in the batch
    valid: Tensor  # (B, S, S) float, 0 where the square is padding
    sized: Tensor  # (Z, S, S) uint8 0 or 1, the thing of each size, in the order told
    listed: Tensor  # (L, S, S) uint8 0 or 1, what each name of a list stands for
    listed_words: Tensor  # (L, 3) long, (row, first, behind the last) of the words of each
    first_words: Tensor  # (M, 2) long, (row, place) of the first token of each answer learnt
    spots: AttentionTargets | None = None  # of the lesson of looking, if there is one

    def to(self, device: torch.device | str) -> Self:
        """Return the same on `device`."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {n: part if part is None else part.to(device) for n, part in parts.items()}
        return type(self)(**moved)


@dataclass(frozen=True, kw_only=True)
class TabletopBatch(QueryBatch):
    """The same with the pictures, and with the truth of what is to be seen there."""

    batch: LisaBatch
    kinds: Tensor  # (B, S, S) uint8, KIND_INDEX of each pixel
    colours: Tensor  # (B, S, S) uint8, COLOUR_INDEX of each pixel
    things: Tensor  # (B, S, S) uint8, id of the thing that each pixel shows, 0 none
    there: Tensor  # (B, K) float, 1 if a thing of the kind is seen, 0 if there is none, nan hidden
    # of each thing by its id, nan or IGNORED where it is not clear:
    standing: Tensor  # (B, MOST, 4) float, right, away, height, longest [m]
    beside: Tensor  # (B, MOST, places, 2) long, KIND_INDEX and COLOUR_INDEX of its neighbours
    firsts: Tensor  # (B, MOST, 2 * superlatives) float 0 or 1, of all things, of its own kind


def make_batch(
    config: LisaConfig,
    tokenizer: Tokenizer,
    clip: image_processing.ClipPreprocessing,
    views: list[tuple[np.ndarray, np.ndarray, SceneGraph, list[TabletopQuery]]],
) -> TabletopBatch:
    """Return what LISA sees and should answer, of views: colour, ids, table and requests."""
    clip_pixels, sam_pixels, kinds, colours, squares = [], [], [], [], []
    for colour, ids, table, _ in views:
        clip_pixels.append(image_processing.clip_pixels(colour, clip))
        sam_pixels.append(image_processing.sam_input(colour, config.sam_size).pixels)
        square = to_sam_square(ids, config.sam_size)
        classes = np.zeros((2, 256), np.uint8)
        for one in table.objects:
            values = KIND_INDEX[one.kind], COLOUR_INDEX.get(one.looks_coloured, 0)
            classes[:, one.id] = classes[:, one.id + PART_FLAG] = values
        kinds.append(classes[0][square])
        colours.append(classes[1][square])
        squares.append(square)
    shapes = {ids.shape for _, ids, _, _ in views}
    talk = make_query_batch(
        config, tokenizer, shapes.pop(), squares, [requests for *_, requests in views]
    )
    layouts = [auxiliary_targets(table) for _, _, table, _ in views]
    there, standing, beside, firsts = (
        torch.from_numpy(np.stack(x)) for x in zip(*layouts, strict=True)
    )
    return TabletopBatch(
        batch=LisaBatch(
            **vars(talk.batch),
            clip_pixels=torch.from_numpy(np.stack(clip_pixels)),
            sam_pixels=torch.from_numpy(np.stack(sam_pixels)),
        ),
        truth=talk.truth,
        sized=talk.sized,
        listed=talk.listed,
        listed_words=talk.listed_words,
        valid=talk.valid,
        first_words=talk.first_words,
        kinds=torch.from_numpy(np.stack(kinds)),
        colours=torch.from_numpy(np.stack(colours)),
        things=torch.from_numpy(np.stack(squares) & ~np.uint8(PART_FLAG)),
        there=there,
        standing=standing,
        beside=beside,
        firsts=firsts,
    )


def make_query_batch(
    config: LisaConfig,
    tokenizer: Tokenizer,
    shape: tuple[int, int],
    squares: Sequence[np.ndarray],
    requests: Sequence[Sequence[TabletopQuery]],
) -> QueryBatch:
    """Return what is asked about pictures of one shape and what the answers are.

    Args:
        config: the model's.
        tokenizer: the model's.
        shape: (height, width) of the pictures [px].
        squares: B x (S, S) uint8, their ids in SAM's square.
        requests: about each of them.
    """
    side = config.sam_size
    height, width = image_processing.sam_resized(shape, side)
    valid = torch.zeros(len(squares), side, side)
    valid[:, :height, :width] = 1
    rows, labels, owners, truth, sized = [], [], [], [], []
    listed, spans = [], []
    for number, (square, some) in enumerate(zip(squares, requests, strict=True)):
        for request in some:
            row, label = _words(config, tokenizer, request)
            listed.append(_masks(square, tuple(x.ids for x in request.listed)))
            spans += [(len(rows), *span) for span in _listed(tokenizer, label, request)]
            rows.append(row)
            labels.append(label)
            owners.append(number)
            truth.append(_masks(square, request.targets))
            sized.append(_masks(square, request.sized))
    longest, pad = max(map(len, rows)), tokenizer.pad_token_id
    batch = Conversations(
        input_ids=torch.tensor([row + [pad] * (longest - len(row)) for row in rows]),
        labels=torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels]),
        attention_mask=torch.tensor(
            [[True] * len(row) + [False] * (longest - len(row)) for row in rows]
        ),
        image_index=torch.tensor(owners),
    )
    learnt = batch.labels != IGNORED
    return QueryBatch(
        batch=batch,
        truth=torch.cat(truth),
        sized=torch.cat(sized),
        listed=torch.cat(listed),
        listed_words=torch.tensor(spans, dtype=torch.long).reshape(-1, 3),
        valid=valid,
        first_words=(learnt[:, 1:] & ~learnt[:, :-1]).nonzero() + torch.tensor([0, 1]),
    )


def _words(
    config: LisaConfig, tokenizer: Tokenizer, request: TabletopQuery
) -> tuple[list[int], list[int]]:
    """Return what is read of a request, and what of it is learnt; of a slip, what precedes it."""
    row, label = prompts.training_ids(tokenizer, config.template, request.turns)
    if request.insisted:
        return row, [IGNORED] * len(row)
    if not request.slip:
        return row, label
    *turns, last = request.turns
    said = [*turns, dataclasses.replace(last, answer_raw=request.slip)]
    read, _ = prompts.training_ids(tokenizer, config.template, said)
    same = next(i for i, (a, b) in enumerate(zip(row, read, strict=False)) if a != b)
    return read, label[:same] + [IGNORED] * (len(read) - same)


def _listed(
    tokenizer: Tokenizer, label: list[int], request: TabletopQuery
) -> list[tuple[int, int]]:
    """Return (first, behind the last) of the words of each name in the lists of a request.

    What stands between two names belongs to the second: whether there is one more is seen there.
    """
    before = itertools.pairwise([IGNORED, *label])
    begins = [i for i, (last, word) in enumerate(before) if last == IGNORED != word]
    spans: list[tuple[int, int]] = []
    for number, one in enumerate(request.listed):
        words = tokenizer.encode(f'the {one.name}')[len(tokenizer.encode('the')) :]
        goes_on = number > 0 and request.listed[number - 1].turn == one.turn
        begin = spans[-1][1] if goes_on else begins[one.turn]
        at = next(i for i in range(begin, len(label)) if label[i : i + len(words)] == words)
        spans.append((begin if goes_on else at - 1, at + len(words)))  # the first with its "the"
    return spans


def _masks(ids: np.ndarray, wanted: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return where an id image (S, S) shows one of the ids of each of n sets, (n, S, S) uint8."""
    chosen = np.zeros((len(wanted), 256), np.uint8)
    for row, some in zip(chosen, wanted, strict=True):
        row[list(some)] = 1
    return torch.from_numpy(chosen[:, ids])


def auxiliary_targets(table: SceneGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return what Lesson says of one picture: `there`, `standing`, `beside`, `firsts`."""
    there = np.zeros(len(OBJECT_CATEGORIES), np.float32)
    standing = np.full((MAX_OBJECTS, 4), np.nan, np.float32)
    beside = np.full((MAX_OBJECTS, len(PLACES), 2), IGNORED, np.int64)
    firsts = np.full((MAX_OBJECTS, 2 * len(SUPERLATIVES)), np.nan, np.float32)
    for one in sorted(table.objects, key=lambda o: o.area):
        there[KIND_INDEX[one.kind] - 1] = 1 if one.area >= VISIBLE else np.nan
        standing[one.id] = one.right, one.away, one.height, one.longest
        alike = [o for o in table.objects if o.kind == one.kind]
        for i, (measure, margin) in enumerate(SUPERLATIVES.values()):
            for group, things in enumerate((table.objects, alike)):
                rivals = [o for o in things if o.id != one.id]
                ahead = [measure(one) - measure(o) for o in rivals]
                seen = [a for a, o in zip(ahead, rivals, strict=True) if o.area >= VISIBLE]
                if min(seen, default=0) <= -margin:  # by something that can be seen
                    firsts[one.id, group * len(SUPERLATIVES) + i] = 0
                elif ahead and min(ahead) >= margin:
                    firsts[one.id, group * len(SUPERLATIVES) + i] = 1
        for i, place in enumerate(PLACES):
            other = nearest_in_relation(table.objects, place, one)
            if other is not None and other.area >= VISIBLE:
                colour = COLOUR_INDEX.get(other.looks_coloured, 0)
                beside[one.id, i] = KIND_INDEX[other.kind], colour
            elif not any(on_side(o, place, one) for o in table.objects if o.id != one.id):
                beside[one.id, i] = 0
    return there, standing, beside, firsts
