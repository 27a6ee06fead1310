# SPDX-License-Identifier: Apache-2.0
"""The lesson of looking: to say where a thing is, how big it is, or what it is, look at it.

"The milk 42 56, left of it 22 58. It is the red mug, [SEG]": before the numbers of a place are
said, two heads of one layer are to attend to the image tokens around that place; before a size in
cm, before each word of the name behind "It is the", of a list ("The milk and the lemon are food")
up to its last name, and before [SEG], to those that show the thing. Left out are names that the
numbers of two things decide ("The pan 6 cm, the bowl 8 cm. It is the pan"), and two names behind
one "It is". Nothing else tells a model that starts from nothing where to look: its masks come of
what [SEG] says a thing looks like, and a number that is learnt by its loss alone is read off all
patches at once.

What is looked at must still be named: `naming` is the cross-entropy of the words of those names,
and of what joins a list. In the loss of whole answers they are two words among thirty.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lisa_ros.model.lisa import IGNORED, IMAGE_TOKEN, LISA, LisaOutput
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop.answer_text import NUMBER_WORDS
from lisa_ros.training.tabletop.auxiliary_losses import valid_size
from lisa_ros.training.tabletop.batches import AttentionTargets, QueryBatch

HEADS = 2  # the first ones of the layer
_SPREAD = 0.06  # of the attention that a place wants [shares of the picture's sides]


def supervised_layer(lisa: LISA) -> int:
    """Return the layer that learns to look: the last but one, so that one is left to say it."""
    return max(0, len(lisa.llm.model.layers) - 2)


class AttentionSupervision:
    """Finds what is said by looking, and holds attention and names against the truth."""

    def __init__(self, tokenizer: Tokenizer):
        self._values = {tokenizer.encode(number)[0]: int(number) for number in NUMBER_WORDS}
        self._seg = tokenizer.seg_token_id
        # cut as they are within an answer, not as at its beginning: hence the numbers before them
        self._it_is = tokenizer.encode('86 42. It is the')[3:]
        self._comma, self._the = tokenizer.encode('86 42, the')[2:]

    def attention_targets(self, lesson: QueryBatch, side: int) -> AttentionTargets:
        """Return what the answers of a lesson say by looking at side x side image tokens.

        On the CPU, where lessons are drawn: it reads their words one by one.
        """
        places, sizes, names = self._said(lesson)
        near = self._near(torch.tensor([where for *_, where in places]).reshape(-1, 2), side)
        listed = [
            (row, word, number)
            for number, (row, first, end) in enumerate(lesson.listed_words.tolist())
            for word in range(first, end)
        ]
        of_things = (
            (lesson.sized, sizes),
            (lesson.truth, self._pointed(lesson)),
            (lesson.truth, names),
            (lesson.listed, listed),
        )
        shown = torch.cat(
            [
                _shares(truth[[number for *_, number in some]], lesson, side)
                for truth, some in of_things
            ]
        )
        words = [*places, *(each for _, some in of_things for each in some)]
        found = torch.tensor([each[:2] for each in words], dtype=torch.long).reshape(-1, 2)
        wanted = torch.cat([near, shown])
        unnamed = len(words) - len(names) - len(listed)
        named = torch.arange(len(found)) >= unnamed
        clear = wanted.sum(1) > 0  # in this view something of it shows
        return AttentionTargets(*found[clear].unbind(1), wanted[clear], named[clear])

    def _pointed(self, lesson: QueryBatch) -> list[tuple[int, int, int]]:
        """Return (row, word, number among all) of each [SEG] that is learnt."""
        segs = (lesson.batch.input_ids == self._seg).nonzero().tolist()
        return [
            (row, word, number)
            for number, (row, word) in enumerate(segs)
            if lesson.batch.labels[row, word] == self._seg
        ]

    def _said(self, lesson: QueryBatch) -> tuple[list[tuple], list[tuple], list[tuple]]:
        """Return the numbers of places, sizes, and words of names, each with its truth.

        (row, word, (x, y)); (row, word, the size's number in the lesson); (row, word, the number
        of the [SEG] behind it).
        """
        places: list[tuple] = []
        sizes: list[tuple] = []
        names: list[tuple] = []
        segs = (lesson.batch.input_ids == self._seg).sum(1).cumsum(0).tolist()
        for row, words in enumerate(lesson.batch.labels.tolist()):
            ids = lesson.batch.input_ids[row].tolist()
            x = 0
            while x < len(words):
                if self._number(words, x) and self._number(words, x + 1):
                    # even hundredths, rounded down: the middle of the step
                    where = [(self._values[word] + 1) / 100 for word in words[x : x + 2]]
                    places += [(row, x, where), (row, x + 1, where)]
                    x += 1
                elif self._number(words, x):
                    sizes.append((row, x, len(sizes)))
                else:
                    name = self._name(words, x)
                    if name:
                        seg = segs[row] - ids[x:].count(self._seg)
                        names += [(row, word, seg) for word in name]
                x += 1
        return places, sizes, names

    def _number(self, words: list[int], x: int) -> bool:
        return x < len(words) and words[x] in self._values

    def _name(self, words: list[int], x: int) -> range:
        """Return where the words of a name are, if "It is the" begins at x and it is one name."""
        start = x + len(self._it_is)
        if words[x:start] != self._it_is:
            return range(0)
        answer = x - next((i for i, word in enumerate(words[x::-1]) if word == IGNORED), x)
        said = words[answer:x]
        compared = (self._comma, self._the) in itertools.pairwise(said)
        end = start
        while end < len(words) and words[end] not in (self._comma, self._seg, IGNORED):
            end += 1
        several = self._the in words[start : end + 2]  # "the mug and the pan", "the mug, the pan"
        return range(0) if compared or several else range(start, end)

    @staticmethod
    def _near(where: Tensor, side: int) -> Tensor:
        """Return the attention (n, P) that places (n, 2) want."""
        middle = (torch.arange(side) + 0.5) / side
        down, across = torch.meshgrid(middle, middle, indexing='ij')
        patches = torch.stack([across.flatten(), down.flatten()], dim=1)
        away = (where[:, None] - patches).square().sum(-1)  # (n, P)
        return (-away / (2 * _SPREAD**2)).softmax(1)

    def losses(self, lisa: LISA, out: LisaOutput, lesson: QueryBatch) -> dict[str, Tensor]:
        """Return `looking`, how far attention is from what is to be looked at
        (Kullback-Leibler), and `naming`.
        """
        spots = lesson.spots
        told = dict.fromkeys(('looking', 'naming'), out.llm_states.sum() * 0)
        if len(spots.rows):
            begin = (lesson.batch.input_ids == IMAGE_TOKEN).long().argmax(1)[spots.rows]
            seen, wanted = attention(lisa, out, spots, begin), spots.wanted
            away = torch.xlogy(wanted, wanted) - wanted * (seen + 1e-6).log()
            told['looking'] = away.sum(1).mean()
        if spots.names.any():
            rows, words = spots.rows[spots.names], spots.words[spots.names]
            said = lisa.llm.lm_head(out.llm_states[rows, out.predicting_positions(words)]).float()
            told['naming'] = F.cross_entropy(said, lesson.batch.labels[rows, words])
        return told


def _shares(masks: Tensor, lesson: QueryBatch, side: int) -> Tensor:
    """Return the attention (n, P) that the things of masks (n, S, S) want; zeros where none shows.

    CLIP sees the whole picture squeezed to a square, without SAM's padding. Patches that a thing
    fills count more than those at its edge.
    """
    rows, columns = valid_size(lesson)
    if len(masks) == 0:
        return torch.zeros(0, side * side)
    shown = masks[:, :rows, :columns].float()
    filled = F.adaptive_avg_pool2d(shown, (side, side)).flatten(1).square()
    return filled / filled.sum(1, keepdim=True).clamp(min=1e-9)


def attention(lisa: LISA, out: LisaOutput, spots: AttentionTargets, begin: Tensor) -> Tensor:
    """Return what the heads that look attend to while they say the words of some spots.

    Args:
        lisa: the model.
        out: what it made of conversations, with the input of its `layer`.
        spots: n words that it is to say.
        begin: (n,) long, where the image tokens begin in the row of each.

    Returns:
        (n, P), the mean of the heads' attention to each image token; the rest is on words.
    """
    looks, count = lisa.llm.model.layers[supervised_layer(lisa)], out.clip_tokens.shape[1]
    states = looks.input_layernorm(out.llm_inner)
    rotation = lisa.llm.model.rotary_emb(states, torch.arange(states.shape[1])[None].to(begin))
    size = looks.self_attn.head_dim
    heads = (
        states @ matrix.weight[: HEADS * size].T
        for matrix in (looks.self_attn.q_proj, looks.self_attn.k_proj)
    )
    asks, keys = apply_rotary_pos_emb(
        *(each.unflatten(-1, (HEADS, size)).transpose(1, 2).float() for each in heads), *rotation
    )  # (Q, HEADS, L, size)
    before = out.predicting_positions(spots.words)
    likeness = torch.einsum('nhd,nhld->nhl', asks[spots.rows, :, before], keys[spots.rows])
    later = torch.arange(states.shape[1], device=begin.device) > before[:, None]
    likeness = (likeness * looks.self_attn.scaling).masked_fill(later[:, None], float('-inf'))
    told = likeness.softmax(-1).mean(1)  # (n, L)
    return told.gather(1, begin[:, None] + torch.arange(count, device=begin.device))
