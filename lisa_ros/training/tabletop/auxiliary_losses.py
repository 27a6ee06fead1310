# SPDX-License-Identifier: Apache-2.0
"""Auxiliary losses for a LISA that starts from random weights. Their heads are not exported.

The original LISA starts from pretrained CLIP, LLaMA and SAM. A small model with random weights
learns to write answers within minutes, but does not learn where objects are. These losses help:

    pixel_class        SAM's features predict category and colour of each pixel (cross-entropy)
    patch_class        the image tokens predict the same classes
    patch_names        the similarity of an image token to the language model's embedding of a name
                       predicts whether its patch shows this category or colour: image and text get
                       a common embedding space
    category_presence  the image token most similar to a category's name predicts whether an object
                       of that category is visible
    object_layout      an image token predicts where its object is, the nearest objects on each
                       side, and whether it is the tallest, the nearest, ... of all objects or of
                       its category
    prompt_mask        the dot product of the [SEG] prompt with SAM's features is the mask (BCE and
                       Dice)
    presence           extra cross-entropy for the tokens that say whether the object is present:
                       the first token of an answer ("Sure", "There"), each [SEG], and the "but" of
                       an answer that begins with a reason
    numbers            for a number in an answer: a wrong number costs less if it is close to the
                       right one

The parameter names of the heads are keys of saved runs (last.pt): keep them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lisa_ros.model.lisa import LISA, LisaOutput
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.packing import IGNORE_INDEX
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop.answer_text import NUMBER_WORDS
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES
from lisa_ros.tabletop.scene_graph import RELATIONS, SUPERLATIVES
from lisa_ros.training.losses import dice_loss
from lisa_ros.training.tabletop.auxiliary_targets import MAX_OBJECTS
from lisa_ros.training.tabletop.batches import QueryBatch, TabletopBatch
from lisa_ros.training.tabletop.vocabulary import has_number_tokens

# number of classes of pixels and neighbours; class 0 is none
_CATEGORY_CLASSES, _COLOUR_CLASSES = len(OBJECT_CATEGORIES) + 1, len(COLOURS) + 1
_MEASURE_MEANS = (0.0, 0.8, 0.1, 0.15)  # typical right, away, height, longest of an object [m]
_CELL_SIDE = 4  # predicted pixels along a side of a grid cell, as in SAM's mask decoder
# a patch predicts the layout of an object that covers at least this many of its 16 pixels
_MIN_OBJECT_PIXELS = 3
_NUMBER_STD = 1.0  # of the Gaussian target around the right number [number tokens, steps of 2]


class AuxiliaryHeads(nn.Module):
    """Heads and losses that are used only in training."""

    def __init__(self, config: LisaConfig, tokenizer: Tokenizer):
        """Create the heads, with random weights, for the sizes of a model."""
        super().__init__()
        classes = (_CATEGORY_CLASSES + _COLOUR_CLASSES) * _CELL_SIDE * _CELL_SIDE
        width = config.llama.hidden_size
        self.pixel_head = nn.Linear(config.out_dim, classes)  # of pixel_class
        self.patch_head = nn.Linear(width, classes)  # of patch_class
        self.point_scale = nn.Parameter(torch.tensor(1.0))  # of prompt_mask
        self.point_bias = nn.Parameter(torch.tensor(-2.0))
        names = [*OBJECT_CATEGORIES, *COLOURS]
        self.register_buffer(
            'name_pieces', _name_token_weights(names, tokenizer)
        )  # (names, vocabulary)
        self.register_buffer('number_tokens', _number_tokens(tokenizer), persistent=False)
        but = tokenizer.encode('a, but')[len(tokenizer.encode('a,'))]
        presence_tokens = torch.tensor([config.seg_token_id, but])
        self.register_buffer('presence_tokens', presence_tokens, persistent=False)
        self.word_scale = nn.Parameter(torch.tensor(10.0))  # of patch_names
        self.word_bias = nn.Parameter(torch.full((len(names),), -3.0))
        self.there_scale = nn.Parameter(torch.tensor(10.0))  # of category_presence
        self.there_bias = nn.Parameter(torch.full((len(OBJECT_CATEGORIES),), -5.0))
        neighbours = len(RELATIONS) * (_CATEGORY_CLASSES + _COLOUR_CLASSES)
        self.place_head = nn.Linear(width, neighbours + 2 * len(SUPERLATIVES) + 4)  # object_layout

    # ---- vision: categories and colours

    def pixel_class_loss(self, embeddings: Tensor, batch: TabletopBatch) -> Tensor:
        """Return `pixel_class`, from SAM's features (B, C, h, w)."""
        grid = embeddings.permute(0, 2, 3, 1)  # (B, h, w, C)
        return _class_loss(
            self.pixel_head, grid, batch.category_map, batch.colour_map, batch.valid_pixels
        )

    def patch_class_loss(self, tokens: Tensor, batch: TabletopBatch) -> Tensor:
        """Return `patch_class`, from the image tokens (B, P, D), which have no padding."""
        side = int(tokens.shape[1] ** 0.5)
        height, width = batch.valid_size
        maps = (batch.category_map, batch.colour_map, batch.valid_pixels)
        grid = F.rms_norm(tokens.float(), tokens.shape[-1:]).unflatten(1, (side, side))
        return _class_loss(self.patch_head, grid, *(m[:, :height, :width] for m in maps))

    def name_losses(
        self, lisa: LISA, tokens: Tensor, batch: TabletopBatch
    ) -> tuple[Tensor, Tensor]:
        """Return `patch_names` and `category_presence`, from the image tokens (B, P, D)."""
        names = self.name_pieces @ lisa.llm.get_input_embeddings().weight  # (names, D)
        similarity = F.normalize(tokens.float(), dim=-1) @ F.normalize(names, dim=-1).T
        logits = similarity * self.word_scale + self.word_bias  # (B, P, names)
        target = (_patch_coverage(batch, int(tokens.shape[1] ** 0.5)) / 0.2).clamp(max=1)
        # weight of positives: most patches show no object of the catalogue
        pos_weight = torch.tensor(4.0, device=logits.device)
        loss = F.binary_cross_entropy_with_logits(
            logits, target, reduction='none', pos_weight=pos_weight
        )
        best = similarity[..., : len(OBJECT_CATEGORIES)].amax(1)  # (B, K)
        presence_logits = best * self.there_scale + self.there_bias
        known = ~batch.category_present.isnan()
        presence = F.binary_cross_entropy_with_logits(
            presence_logits[known], batch.category_present[known]
        )
        return loss.sum(-1).mean(), presence

    # ---- vision: layout

    def object_layout_loss(self, tokens: Tensor, batch: TabletopBatch) -> Tensor:
        """Return `object_layout`, from the image tokens (B, P, D)."""
        image, patch, objects = _patch_objects(batch, int(tokens.shape[1] ** 0.5))
        if len(image) == 0:
            return tokens.sum() * 0
        states = F.rms_norm(tokens.float()[image, patch], tokens.shape[-1:])
        categories, colours, superlatives, measures = (
            self.place_head(states)
            .float()
            .split(
                [
                    len(RELATIONS) * _CATEGORY_CLASSES,
                    len(RELATIONS) * _COLOUR_CLASSES,
                    2 * len(SUPERLATIVES),
                    4,
                ],
                dim=1,
            )
        )
        means = measures.new_tensor(_MEASURE_MEANS)
        measure_targets = (batch.object_measures[image, objects] - means) / 0.2
        loss = 5 * F.smooth_l1_loss(measures, measure_targets, beta=0.1)
        loss = loss + _superlative_loss(superlatives, batch.is_superlative[image, objects])
        neighbours = batch.neighbours[image, objects]
        categories = categories.unflatten(1, (len(RELATIONS), _CATEGORY_CLASSES))
        colours = colours.unflatten(1, (len(RELATIONS), _COLOUR_CLASSES))
        loss = loss + 1.0 * _neighbour_loss(categories, neighbours[..., 0])
        return loss + 0.5 * _neighbour_loss(colours, neighbours[..., 1])

    # ---- answers

    def prompt_mask_loss(self, output: LisaOutput, batch: QueryBatch) -> Tensor:
        """Return `prompt_mask`, at the resolution of SAM's features."""
        prompts = torch.cat(output.seg_prompts)
        if len(prompts) == 0:
            return prompts.sum()
        images = batch.inputs.image_index[output.seg_query]
        features = output.image_embeddings[images].float()
        logits = torch.einsum('nc,nchw->nhw', prompts.float(), features)
        logits = logits * self.point_scale / prompts.shape[1] ** 0.5 + self.point_bias
        target = F.adaptive_avg_pool2d(batch.masks.float(), logits.shape[-2:])
        bce = F.binary_cross_entropy_with_logits(
            logits, target, pos_weight=torch.tensor(4.0, device=logits.device)
        )
        return bce + dice_loss(logits, target, len(target))

    def presence_loss(
        self, lisa: LISA, output: LisaOutput, batch: QueryBatch
    ) -> tuple[Tensor, Tensor]:
        """Return `presence`, and the share of its tokens that are predicted correctly."""
        reason_tokens = torch.isin(batch.inputs.labels, self.presence_tokens).nonzero()
        loss, is_right = output.llm_states.sum() * 0, []
        for positions in (batch.first_tokens, reason_tokens):
            if len(positions):
                rows, columns = positions.unbind(1)
                labels = batch.inputs.labels[rows, columns]
                states = output.llm_states[rows, output.predicting_positions(columns)]
                logits = lisa.llm.lm_head(states).float()
                loss = loss + F.cross_entropy(logits, labels)
                is_right.append(logits.argmax(-1) == labels)
        return loss, torch.cat(is_right).float().mean()

    def number_loss(self, lisa: LISA, output: LisaOutput, batch: QueryBatch) -> Tensor:
        """Return `numbers`: cross-entropy with a Gaussian around the right number."""
        labels = batch.inputs.labels
        rows, columns = torch.isin(labels, self.number_tokens).nonzero(as_tuple=True)
        if len(rows) == 0:
            return output.llm_states.sum() * 0
        embeddings = lisa.llm.lm_head.weight[self.number_tokens]
        states = output.llm_states[rows, output.predicting_positions(columns)]
        logits = (states @ embeddings.T).float()  # (n, numbers)
        is_right = labels[rows, columns][:, None] == self.number_tokens
        index = torch.arange(len(self.number_tokens), device=labels.device, dtype=torch.float32)
        distance = index - is_right.float().argmax(1, keepdim=True)
        return F.cross_entropy(logits, (-0.5 * (distance / _NUMBER_STD) ** 2).softmax(1))


def _name_token_weights(names: list[str], tokenizer: Tokenizer) -> Tensor:
    """Return a matrix (names, vocabulary): times the embeddings, the mean over a name's tokens."""
    weights = torch.zeros(len(names), len(tokenizer))
    for row, name in zip(weights, names, strict=True):
        pieces = tokenizer.encode(name)
        row[pieces] = 1 / len(pieces)
    return weights


def _number_tokens(tokenizer: Tokenizer) -> Tensor:
    """Return the ids of the number tokens; none for a vocabulary without them."""
    numbers = NUMBER_WORDS if has_number_tokens(tokenizer) else ()
    return torch.tensor([tokenizer.encode(n)[0] for n in numbers], dtype=torch.long)


def _class_loss(
    head: nn.Module, grid: Tensor, categories: Tensor, colours: Tensor, valid: Tensor
) -> Tensor:
    """Return the cross-entropy of the pixels' classes, predicted from a grid (B, h, w, F).

    Args:
        head: predicts _CELL_SIDE x _CELL_SIDE pixels of each cell.
        grid: features.
        categories: (B, H, W) category class of each pixel.
        colours: (B, H, W) colour class of each pixel.
        valid: (B, H, W) weight of each pixel.
    """
    b, h, w, _ = grid.shape
    logits = head(grid).view(b, h, w, _CELL_SIDE, _CELL_SIDE, -1).permute(0, 5, 1, 3, 2, 4)
    logits = logits.reshape(b, -1, h * _CELL_SIDE, w * _CELL_SIDE).float()
    categories, colours, valid = (
        _resize_nearest(pixel_map, logits.shape[-2:]) for pixel_map in (categories, colours, valid)
    )
    category_logits, colour_logits = logits.split([_CATEGORY_CLASSES, _COLOUR_CLASSES], dim=1)
    loss = F.cross_entropy(category_logits, categories.long(), reduction='none')
    loss = loss + 0.5 * F.cross_entropy(colour_logits, colours.long(), reduction='none')
    weight = valid * (1 + 3 * (categories > 0))  # most pixels of an image show the table
    return (loss * weight).sum() / weight.sum()


def _resize_nearest(pixel_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map (B, H, W) resized to (B, *size) float, by the nearest pixel."""
    return F.interpolate(pixel_map[:, None].float(), size, mode='nearest-exact')[:, 0]


def _patch_coverage(batch: TabletopBatch, side: int) -> Tensor:
    """Return the fraction of each patch that each category and colour covers, (B, P, names).

    CLIP gets the whole image, resized to a square. Therefore SAM's padding is cut off.
    """
    height, width = batch.valid_size
    coverages = []
    for class_map, count in (
        (batch.category_map, _CATEGORY_CLASSES),
        (batch.colour_map, _COLOUR_CLASSES),
    ):
        classes = _resize_nearest(class_map[:, :height, :width], (side * _CELL_SIDE,) * 2)
        one_hot = F.one_hot(classes.long(), count)[..., 1:].permute(0, 3, 1, 2).float()
        coverages.append(F.avg_pool2d(one_hot, _CELL_SIDE))
    return torch.cat(coverages, dim=1).flatten(2).transpose(1, 2)


def _patch_objects(batch: TabletopBatch, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of image, patch and object of patches with an object, (n,) long each."""
    height, width = batch.valid_size
    ids = _resize_nearest(batch.object_map[:, :height, :width], (side * _CELL_SIDE,) * 2)
    ids = ids.unflatten(1, (side, _CELL_SIDE)).unflatten(3, (side, _CELL_SIDE)).transpose(2, 3)
    ids = ids.reshape(len(ids), side * side, _CELL_SIDE * _CELL_SIDE).long()
    counts = F.one_hot(ids, MAX_OBJECTS).sum(2)[..., 1:]  # (B, P, objects)
    count, index = counts.max(-1)
    image, patch = (count >= _MIN_OBJECT_PIXELS).nonzero(as_tuple=True)
    return image, patch, index[image, patch] + 1


def _superlative_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the targets that are not nan."""
    known = ~targets.isnan()
    total = F.binary_cross_entropy_with_logits(logits[known], targets[known], reduction='sum')
    return total / max(1, len(targets[known]))


def _neighbour_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the targets that are not IGNORE_INDEX."""
    known = targets != IGNORE_INDEX
    total = F.cross_entropy(logits[known], targets[known], reduction='sum')
    return total / max(1, len(targets[known]))
