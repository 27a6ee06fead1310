# SPDX-License-Identifier: Apache-2.0
"""Extra lessons for a LISA that starts from nothing, dropped once it has learnt.

The original starts from CLIP, LLaMA and SAM, which know the world already. A small model that
starts from random weights learns to talk within minutes but not to point. Nine signals help; they
have small heads of their own that are not part of the model:

    pixels    SAM's features say what kind and colour each pixel is (cross-entropy)
    patches   the image tokens say the same
    words     an image token says which kinds and colours its patch shows, measured against the
              language model's own embeddings of their names: picture and words share a space
    inventory the image token most like a kind's name says whether one of the kind is there
    places    an image token says where its thing stands, what its neighbours to each side are,
              and whether it is the tallest, the nearest, ... of all or of its kind
    pointing  the [SEG] prompt's dot product with SAM's features is the mask (BCE and Dice)
    presence  the first words of answers, "Sure" or "There", count as a loss of their own; so do
              [SEG], and "but" where a reason comes first
    numbers   a measure in an answer that is a little off is better than one that is far off
    iou       SAM's guess of each mask's IoU is held against what it is (squared error)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lisa_ros.model.lisa import IGNORED, LISA, LisaConfig, LisaOutput
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop.answer_text import NUMBER_WORDS
from lisa_ros.tabletop.objects import COLOURS, OBJECT_CATEGORIES
from lisa_ros.tabletop.scene_graph import PLACES, SUPERLATIVES
from lisa_ros.training.losses import dice_loss, sigmoid_ce_loss
from lisa_ros.training.tabletop.batches import MAX_OBJECTS, QueryBatch, TabletopBatch

USUAL = (0.0, 0.8, 0.1, 0.15)  # right, away, height, longest of most things [m]
FINE = 4  # pixels of a class map for each side of a cell of SAM's grid, as in its mask decoder


class AuxiliaryHeads(nn.Module):
    """The heads of the extra lessons."""

    def __init__(self, config: LisaConfig, tokenizer: Tokenizer):
        super().__init__()
        classes = len(OBJECT_CATEGORIES) + 1 + len(COLOURS) + 1
        self.pixel_head = nn.Linear(config.out_dim, classes * FINE * FINE)
        self.patch_head = nn.Linear(config.llama.hidden_size, classes * FINE * FINE)
        self.point_scale = nn.Parameter(torch.tensor(1.0))
        self.point_bias = nn.Parameter(torch.tensor(-2.0))
        names = [*OBJECT_CATEGORIES, *COLOURS]
        pieces = [tokenizer.encode(name) for name in names]
        spread = torch.zeros(len(names), len(tokenizer))
        for row, ids in zip(spread, pieces, strict=True):
            row[ids] = 1 / len(ids)
        self.register_buffer('names', spread)  # (names, vocabulary): a name is its pieces' mean
        # of a vocabulary that has none (before answers measured anything): no such lesson
        known = [
            tokenizer.encode(number)[0] for number in NUMBER_WORDS if has_number_tokens(tokenizer)
        ]
        self.register_buffer('numbers', torch.tensor(known, dtype=torch.long), persistent=False)
        but = tokenizer.encode('a, but')[len(tokenizer.encode('a,'))]
        points = torch.tensor([config.seg_token_id, but])
        self.register_buffer('points', points, persistent=False)
        self.word_scale = nn.Parameter(torch.tensor(10.0))
        self.word_bias = nn.Parameter(torch.full((len(names),), -3.0))
        self.there_scale = nn.Parameter(torch.tensor(10.0))
        self.there_bias = nn.Parameter(torch.full((len(OBJECT_CATEGORIES),), -5.0))
        neighbours = len(PLACES) * (len(OBJECT_CATEGORIES) + 1 + len(COLOURS) + 1)
        width = config.llama.hidden_size
        self.place_head = nn.Linear(width, neighbours + 2 * len(SUPERLATIVES) + 4)

    def pixels(self, embeddings: Tensor, lesson: TabletopBatch) -> Tensor:
        """Return the loss of telling kind and colour of each pixel from SAM's features."""
        grid = embeddings.permute(0, 2, 3, 1)  # (B, h, w, C)
        return self._classes(self.pixel_head, grid, lesson.kinds, lesson.colours, lesson.valid)

    def patches(self, tokens: Tensor, lesson: TabletopBatch) -> Tensor:
        """Return the same loss from the image tokens, which see the picture without padding."""
        side = int(tokens.shape[1] ** 0.5)
        rows, columns = valid_size(lesson)
        kinds, colours, valid = (
            t[:, :rows, :columns] for t in (lesson.kinds, lesson.colours, lesson.valid)
        )
        grid = F.rms_norm(tokens.float(), tokens.shape[-1:]).unflatten(1, (side, side))
        return self._classes(self.patch_head, grid, kinds, colours, valid)

    def _classes(
        self, head: nn.Module, grid: Tensor, kinds: Tensor, colours: Tensor, valid: Tensor
    ) -> Tensor:
        """Return the cross-entropy of FINE x FINE classes in each cell of a grid (B, h, w, F)."""
        b, h, w, _ = grid.shape
        logits = head(grid).view(b, h, w, FINE, FINE, -1).permute(0, 5, 1, 3, 2, 4)
        logits = logits.reshape(b, -1, h * FINE, w * FINE).float()
        kinds, colours, valid = (
            F.interpolate(t[:, None].float(), logits.shape[-2:], mode='nearest-exact')[:, 0]
            for t in (kinds, colours, valid)
        )
        of_kind, of_colour = logits.split([len(OBJECT_CATEGORIES) + 1, len(COLOURS) + 1], dim=1)
        loss = F.cross_entropy(of_kind, kinds.long(), reduction='none')
        loss = loss + 0.5 * F.cross_entropy(of_colour, colours.long(), reduction='none')
        weight = valid * (1 + 3 * (kinds > 0))  # most of a picture is table
        return (loss * weight).sum() / weight.sum()

    def words(self, lisa: LISA, tokens: Tensor, lesson: TabletopBatch) -> tuple[Tensor, Tensor]:
        """Return the losses of naming what each image token's patch shows, and what is there."""
        names = self.names @ lisa.llm.get_input_embeddings().weight  # (names, D)
        likeness = F.normalize(tokens.float(), dim=-1) @ F.normalize(names, dim=-1).T
        logits = likeness * self.word_scale + self.word_bias
        side = int(tokens.shape[1] ** 0.5)
        # CLIP sees the whole picture squeezed to a square: leave the padding out
        rows, columns = valid_size(lesson)
        shares = []
        for classes, count in (
            (lesson.kinds, len(OBJECT_CATEGORIES)),
            (lesson.colours, len(COLOURS)),
        ):
            few = F.interpolate(
                classes[:, None, :rows, :columns].float(), (side * FINE,) * 2, mode='nearest-exact'
            )[:, 0]
            seen = F.one_hot(few.long(), count + 1)[..., 1:].permute(0, 3, 1, 2).float()
            shares.append(F.avg_pool2d(seen, FINE))
        share = torch.cat(shares, dim=1).flatten(2).transpose(1, 2)  # (B, P, names)
        target = (share / 0.2).clamp(max=1)
        rare = torch.tensor(4.0, device=logits.device)  # most patches show nothing with a name
        loss = F.binary_cross_entropy_with_logits(
            logits, target, reduction='none', pos_weight=rare
        )
        most = (
            likeness[..., : len(OBJECT_CATEGORIES)].amax(1) * self.there_scale + self.there_bias
        )  # (B, K)
        sure = ~lesson.there.isnan()
        inventory = F.binary_cross_entropy_with_logits(most[sure], lesson.there[sure])
        return loss.sum(-1).mean(), inventory

    def places(self, tokens: Tensor, lesson: TabletopBatch) -> Tensor:
        """Return the loss of telling from an image token where its thing stands among others."""
        side = int(tokens.shape[1] ** 0.5)
        rows, columns = valid_size(lesson)
        shown = F.interpolate(
            lesson.things[:, None, :rows, :columns].float(),
            (side * FINE,) * 2,
            mode='nearest-exact',
        )[:, 0]
        shown = shown.unflatten(1, (side, FINE)).unflatten(3, (side, FINE)).transpose(2, 3)
        shown = shown.reshape(len(tokens), side * side, FINE * FINE).long()
        counts = F.one_hot(shown, MAX_OBJECTS).sum(2)[..., 1:]  # (B, P, things)
        count, thing = counts.max(-1)
        picture, patch = (count >= 3).nonzero(as_tuple=True)  # patches with something to tell
        if len(picture) == 0:
            return tokens.sum() * 0
        thing = thing[picture, patch] + 1
        said = F.rms_norm(tokens.float()[picture, patch], tokens.shape[-1:])
        said = self.place_head(said).float()
        kinds, colours = len(OBJECT_CATEGORIES) + 1, len(COLOURS) + 1
        of_kind, of_colour, firsts, standing = said.split(
            [len(PLACES) * kinds, len(PLACES) * colours, 2 * len(SUPERLATIVES), 4], dim=1
        )
        beside = lesson.beside[picture, thing]
        metres = (lesson.standing[picture, thing] - standing.new_tensor(USUAL)) / 0.2
        loss = 5 * F.smooth_l1_loss(standing, metres, beta=0.1)
        truth = lesson.firsts[picture, thing]
        sure = ~truth.isnan()
        unsure = F.binary_cross_entropy_with_logits(firsts[sure], truth[sure], reduction='sum')
        loss = loss + unsure / max(1, len(truth[sure]))
        for logits, weight, target in (
            (of_kind.unflatten(1, (len(PLACES), kinds)), 1.0, beside[..., 0]),
            (of_colour.unflatten(1, (len(PLACES), colours)), 0.5, beside[..., 1]),
        ):
            clear = target != IGNORED
            unsure = F.cross_entropy(logits[clear], target[clear], reduction='sum')
            loss = loss + weight * unsure / max(1, len(target[clear]))
        return loss

    def pointing(self, out: LisaOutput, lesson: QueryBatch) -> Tensor:
        """Return the loss of finding the mask by the prompt's dot product with the features."""
        prompts = torch.cat(out.seg_prompts)
        if len(prompts) == 0:
            return prompts.sum()
        images = lesson.batch.image_index[out.seg_query]
        features = out.image_embeddings[images].float()
        logits = torch.einsum('nc,nchw->nhw', prompts.float(), features)
        logits = logits * self.point_scale / prompts.shape[1] ** 0.5 + self.point_bias
        coarse = F.adaptive_avg_pool2d(lesson.truth.float(), logits.shape[-2:])
        bce = F.binary_cross_entropy_with_logits(
            logits, coarse, pos_weight=torch.tensor(4.0, device=logits.device)
        )
        return bce + dice_loss(logits, coarse, len(coarse))

    def presence(self, lisa: LISA, out: LisaOutput, lesson: QueryBatch) -> tuple[Tensor, Tensor]:
        """Return the loss of the words that say whether a thing is there, and the share right."""
        later = torch.isin(lesson.batch.labels, self.points).nonzero()
        told, right = out.llm_states.sum() * 0, []
        for words in (lesson.first_words, later):
            if len(words):
                rows, places = words.unbind(1)
                labels = lesson.batch.labels[rows, places]
                logits = lisa.llm.lm_head(
                    out.llm_states[rows, out.predicting_positions(places)]
                ).float()
                told = told + F.cross_entropy(logits, labels)
                right.append(logits.argmax(-1) == labels)
        return told, torch.cat(right).float().mean()

    def measures(self, lisa: LISA, out: LisaOutput, lesson: QueryBatch) -> Tensor:
        """Return the loss of the numbers in answers, whose neighbours are half right."""
        labels = lesson.batch.labels
        rows, places = torch.isin(labels, self.numbers).nonzero(as_tuple=True)
        if len(rows) == 0:
            return out.llm_states.sum() * 0
        words = lisa.llm.lm_head.weight[self.numbers]
        logits = (
            out.llm_states[rows, out.predicting_positions(places)] @ words.T
        ).float()  # (n, numbers)
        right = labels[rows, places][:, None] == self.numbers
        step = torch.arange(len(self.numbers), device=labels.device, dtype=torch.float32)
        off = step - right.float().argmax(1, keepdim=True)
        return F.cross_entropy(logits, (-0.5 * (off / _OFF) ** 2).softmax(1))


_OFF = 1.0  # deviation of a measure that is as good as right [steps of MEASURES]


def valid_size(lesson: QueryBatch) -> tuple[int, int]:
    """Return (height, width) of the pictures in SAM's square; all of a lesson have one shape."""
    return int(lesson.valid[0, :, 0].sum()), int(lesson.valid[0, 0].sum())


@torch.no_grad()
def init_matching_heads(lisa: LISA, layers: int = 2) -> None:
    """Make the last head of the first layers look for what is like the token that asks.

    Its keys start equal to its queries. `words` brings image tokens close to the names of what
    they show, so that the word "mug" looks at mugs from the beginning, and whether there is one
    can be learnt; from random keys that takes many thousand steps.
    """
    for layer in lisa.llm.model.layers[:layers]:
        attention = layer.self_attn
        asks, told = (
            p.weight[-attention.head_dim :] for p in (attention.q_proj, attention.k_proj)
        )
        asks *= 1.5
        told.copy_(asks)


def has_number_tokens(tokenizer: Tokenizer) -> bool:
    """Return whether each number that answers measure with is one word of a vocabulary."""
    return all(len(tokenizer.encode(number)) == 1 for number in NUMBER_WORDS)


@torch.no_grad()
def init_number_embeddings(lisa: LISA, tokenizer: Tokenizer, waves: int = 8) -> None:
    """Make the words for numbers begin along a smooth curve, each beside its neighbours.

    From rows drawn at random every number would have to be learnt for itself.
    """
    if not has_number_tokens(tokenizer):
        return
    numbers = [tokenizer.encode(number) for number in NUMBER_WORDS]
    along = torch.linspace(0, torch.pi, len(numbers))[:, None] * torch.arange(waves)
    for table in (lisa.llm.get_input_embeddings().weight, lisa.llm.lm_head.weight):
        ways = torch.randn(waves, table.shape[1]) * table.std() * (2 / waves) ** 0.5
        table[[ids[0] for ids in numbers]] = (along.cos() @ ways).to(table)


def mask_losses(lisa: LISA, out: LisaOutput, lesson: QueryBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the paper's BCE and Dice of the masks, on the pixels of SAM's square but its padding.

    The third is that of the guessed IoU. All pictures of a batch have one shape here, so one crop
    serves them all.
    """
    count = len(lesson.truth)
    if count == 0:
        return (out.mask_logits.sum(),) * 3
    rows, columns = valid_size(lesson)
    logits = lisa.postprocess(out.mask_logits, (rows, columns), (rows, columns))
    truth = lesson.truth[:, :rows, :columns].float()
    with torch.no_grad():
        found = (logits > 0).float()
        both = (found * truth).sum((1, 2))
        iou = both / (found.sum((1, 2)) + truth.sum((1, 2)) - both).clamp(min=1)
    return (
        sigmoid_ce_loss(logits, truth, count),
        dice_loss(logits, truth, count),
        F.mse_loss(out.mask_iou.float(), iou),
    )
