# SPDX-License-Identifier: Apache-2.0
"""Collates rendered scenes and sampled queries into training batches.

Pixels and tokens are made by `image_processing` and `prompts`, the same code as for inference.

Letters: B images, Q conversations, T tokens, N [SEG] tokens, Z sizes in cm, L names in lists,
M answers, P image tokens, S side of SAM's square input [px], K object categories.
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
from lisa_ros.model.lisa import Conversations, LisaBatch
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.packing import IGNORE_INDEX
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception import prompts
from lisa_ros.tabletop.objects import PART_FLAG
from lisa_ros.tabletop.queries import TabletopQuery
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.training.padding import pad_conversations
from lisa_ros.training.tabletop.auxiliary_targets import class_indices, object_targets
from lisa_ros.training.tabletop.dataset import SceneView, to_sam_square

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on


@dataclass(frozen=True)
class AttentionTargets:
    """n answer tokens, each with the image tokens that the model should attend to for it."""

    query_index: Tensor  # (n,) long, row of `input_ids`
    token_index: Tensor  # (n,) long, column of `input_ids`
    attention: Tensor  # (n, P) float, target over the image tokens, each row sums to one
    is_name: Tensor  # (n,) bool, tokens of object names and tokens between the names of a list

    def to(self, device: torch.device | str) -> AttentionTargets:
        """Return a copy on `device`."""
        return AttentionTargets(*(tensor.to(device) for tensor in vars(self).values()))


@dataclass(frozen=True, kw_only=True)
class QueryBatch:
    """Conversations about images with their ground truth; it does not contain the images."""

    inputs: Conversations
    masks: Tensor  # (N, S, S) uint8 0 or 1, ground truth of each [SEG], in the order of `inputs`
    valid_pixels: Tensor  # (B, S, S) float, 0 on the padding of SAM's square
    size_masks: Tensor  # (Z, S, S) uint8 0 or 1, the object of each size, in the order of `inputs`
    list_masks: Tensor  # (L, S, S) uint8 0 or 1, the objects of each name in a list
    list_spans: Tensor  # (L, 3) long, (row, first, end) of the tokens of each name in a list
    first_tokens: Tensor  # (M, 2) long, (row, column) of the first token of each supervised answer
    attention_targets: AttentionTargets | None = None  # None: no attention supervision

    @property
    def valid_size(self) -> tuple[int, int]:
        """(height, width) of the images inside SAM's square [px]; all have the same shape."""
        return int(self.valid_pixels[0, :, 0].sum()), int(self.valid_pixels[0, 0].sum())

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on `device`."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {n: part if part is None else part.to(device) for n, part in parts.items()}
        return type(self)(**moved)


@dataclass(frozen=True, kw_only=True)
class TabletopBatch(QueryBatch):
    """Conversations with their images and the targets of the auxiliary vision losses."""

    inputs: LisaBatch
    category_map: Tensor  # (B, S, S) uint8, CATEGORY_INDEX of each pixel
    colour_map: Tensor  # (B, S, S) uint8, COLOUR_INDEX of each pixel
    object_map: Tensor  # (B, S, S) uint8, object id of each pixel, 0 background
    # see `auxiliary_targets.ObjectTargets`
    category_present: Tensor  # (B, K) float
    object_measures: Tensor  # (B, MAX_OBJECTS, 4) float [m]
    neighbours: Tensor  # (B, MAX_OBJECTS, relations, 2) long
    is_superlative: Tensor  # (B, MAX_OBJECTS, 2 * superlatives) float


def make_batch(
    config: LisaConfig,
    tokenizer: Tokenizer,
    clip_preprocessing: image_processing.ClipPreprocessing,
    views: Sequence[SceneView],
    queries: Sequence[Sequence[TabletopQuery]],
) -> TabletopBatch:
    """Return the batch of B views and their queries. All views must have the same shape."""
    id_squares = [to_sam_square(view.ids, config.sam_size) for view in views]
    (shape,) = {view.ids.shape for view in views}
    query_batch = make_query_batch(config, tokenizer, shape, id_squares, queries)
    class_maps = [
        _class_maps(view.scene_graph, square)
        for view, square in zip(views, id_squares, strict=True)
    ]
    category_map, colour_map = (_stack_to_tensor(maps) for maps in zip(*class_maps, strict=True))
    targets = [object_targets(view.scene_graph) for view in views]
    inputs = LisaBatch(
        **vars(query_batch.inputs),
        clip_pixels=_stack_to_tensor(
            [image_processing.clip_pixels(view.image, clip_preprocessing) for view in views]
        ),
        sam_pixels=_stack_to_tensor(
            [image_processing.sam_input(view.image, config.sam_size).pixels for view in views]
        ),
    )
    return TabletopBatch(
        **{**vars(query_batch), 'inputs': inputs},
        category_map=category_map,
        colour_map=colour_map,
        object_map=_stack_to_tensor([square & ~np.uint8(PART_FLAG) for square in id_squares]),
        category_present=_stack_to_tensor([target.category_present for target in targets]),
        object_measures=_stack_to_tensor([target.measures for target in targets]),
        neighbours=_stack_to_tensor([target.neighbours for target in targets]),
        is_superlative=_stack_to_tensor([target.is_superlative for target in targets]),
    )


def _stack_to_tensor(arrays: Sequence[np.ndarray]) -> Tensor:
    """Return arrays of one shape as a tensor with a leading batch axis."""
    return torch.from_numpy(np.stack(arrays))


def _class_maps(scene_graph: SceneGraph, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return category and colour index of each pixel of an id image, each (S, S) uint8."""
    classes = np.zeros((2, 256), np.uint8)
    for scene_object in scene_graph.objects:
        indices = class_indices(scene_object)
        classes[:, scene_object.id] = indices
        classes[:, scene_object.id + PART_FLAG] = indices
    return classes[0][ids], classes[1][ids]


def make_query_batch(
    config: LisaConfig,
    tokenizer: Tokenizer,
    image_shape: tuple[int, int],
    id_squares: Sequence[np.ndarray],
    queries: Sequence[Sequence[TabletopQuery]],
) -> QueryBatch:
    """Return the conversations about images of one shape, with their ground truth.

    Args:
        config: of the model.
        tokenizer: of the model.
        image_shape: (height, width) of the images [px].
        id_squares: B x (S, S) uint8, their id images in SAM's square, see `to_sam_square`.
        queries: about each of the images.
    """
    rows, labels, image_index, list_spans = [], [], [], []
    masks, size_masks, list_masks = [], [], []
    for image, (ids, image_queries) in enumerate(zip(id_squares, queries, strict=True)):
        for query in image_queries:
            query_ids, query_labels = _tokenize(config, tokenizer, query)
            spans = _list_spans(tokenizer, query_labels, query)
            list_spans += [(len(rows), *span) for span in spans]
            rows.append(query_ids)
            labels.append(query_labels)
            image_index.append(image)
            masks.append(_masks_of_ids(ids, query.targets))
            size_masks.append(_masks_of_ids(ids, query.measured_targets))
            list_masks.append(
                _masks_of_ids(ids, tuple(name.instance_ids for name in query.listed_names))
            )
    inputs = pad_conversations(rows, labels, image_index, tokenizer.pad_token_id)
    supervised = inputs.labels != IGNORE_INDEX
    return QueryBatch(
        inputs=inputs,
        masks=torch.cat(masks),
        valid_pixels=_valid_pixels(len(id_squares), image_shape, config.sam_size),
        size_masks=torch.cat(size_masks),
        list_masks=torch.cat(list_masks),
        list_spans=torch.tensor(list_spans, dtype=torch.long).reshape(-1, 3),
        first_tokens=(supervised[:, 1:] & ~supervised[:, :-1]).nonzero() + torch.tensor([0, 1]),
    )


def _valid_pixels(count: int, image_shape: tuple[int, int], side: int) -> Tensor:
    """Return 1 on the images inside SAM's square and 0 on its padding, (count, side, side)."""
    height, width = image_processing.sam_resized_shape(image_shape, side)
    valid = torch.zeros(count, side, side)
    valid[:, :height, :width] = 1
    return valid


def _tokenize(
    config: LisaConfig, tokenizer: Tokenizer, query: TabletopQuery
) -> tuple[list[int], list[int]]:
    """Return input ids and labels of a query.

    An answer that was corrupted with a wrong object name has labels only up to that name. A query
    with `forced_mask` has no labels.
    """
    input_ids, labels = prompts.training_ids(tokenizer, config.template, query.turns)
    if query.forced_mask:
        return input_ids, [IGNORE_INDEX] * len(input_ids)
    if not query.corrupted_answer:
        return input_ids, labels
    *turns, last_turn = query.turns
    noisy_turns = [*turns, dataclasses.replace(last_turn, answer_raw=query.corrupted_answer)]
    noisy_ids, _ = prompts.training_ids(tokenizer, config.template, noisy_turns)
    pairs = zip(input_ids, noisy_ids, strict=False)
    common = next(i for i, (right, wrong) in enumerate(pairs) if right != wrong)
    return noisy_ids, labels[:common] + [IGNORE_INDEX] * (len(noisy_ids) - common)


def _list_spans(
    tokenizer: Tokenizer, labels: list[int], query: TabletopQuery
) -> list[tuple[int, int]]:
    """Return (first, end) of the tokens of each name in the lists of a query.

    The tokens between two names belong to the second one: they continue the list.
    """
    pairs = itertools.pairwise([IGNORE_INDEX, *labels])
    answer_starts = [
        i for i, (previous, label) in enumerate(pairs) if previous == IGNORE_INDEX != label
    ]
    article = len(tokenizer.encode('the'))
    spans: list[tuple[int, int]] = []
    for number, listed in enumerate(query.listed_names):
        name = tokenizer.encode(f'the {listed.name}')[article:]
        continues = number > 0 and query.listed_names[number - 1].turn == listed.turn
        start = spans[-1][1] if continues else answer_starts[listed.turn]
        first = next(
            i for i in range(start, len(labels)) if labels[i : i + len(name)] == name
        )  # the first name of a list includes its "the"
        spans.append((start if continues else first - 1, first + len(name)))
    return spans


def _masks_of_ids(ids: np.ndarray, id_sets: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the pixels of an id image (S, S) that are in each of n id sets, (n, S, S) uint8."""
    is_member = np.zeros((len(id_sets), 256), np.uint8)
    for row, members in zip(is_member, id_sets, strict=True):
        row[list(members)] = 1
    return torch.from_numpy(is_member[:, ids])
