# SPDX-License-Identifier: Apache-2.0
"""The lesson of looking: to say where a thing is, look at it.

"The milk 42 56, left of it 22 58. It is the red mug, [SEG]": before a number is said, two heads of
one layer are to attend to the image tokens around the place that the numbers tell, and before the
name behind them to those around the last place. Nothing else tells a model that starts from
nothing where to look: its masks come of what [SEG] says a thing looks like, and a number that is
learnt by its loss alone is read off all patches at once.

The truth is in the answer itself: two numbers in a row are a place (`requests.MEASURES`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lisa_ros.model.lisa import IMAGE_TOKEN, LISA, TeacherForced
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.training.data import Asked
from lisa_ros.training.requests import MEASURES

HEADS = 2  # the first ones of the layer
_SPREAD = 0.06  # of the attention that is wanted [shares of the picture's sides]


def layer(lisa: LISA) -> int:
    """Return the layer that learns to look: the last but one, so that one is left to say it."""
    return max(0, len(lisa.llm.model.layers) - 2)


@dataclass(frozen=True)
class Spots:
    """What is said by looking at a place."""

    rows: Tensor  # (n,) long, conversations
    words: Tensor  # (n,) long, places of the words in input_ids
    where: Tensor  # (n, 2) float, shares of the picture's width and height


class Looking:
    """Finds what is said by looking, and holds attention against it."""

    def __init__(self, tokenizer: Tokenizer):
        self._values = {tokenizer.encode(number)[0]: int(number) for number in MEASURES}
        # behind "86 42": a name that is there; or the other one of two that are compared
        self._named = tokenizer.encode('86 42. It is the')[2:]
        self._compared = tokenizer.encode('86 42, the')[2:]

    def spots(self, labels: Tensor) -> Spots:
        """Return the numbers, and names behind them, of answers (Q, T) that tell places."""
        found = []
        for row, words in enumerate(labels.tolist()):
            pairs = self._pairs(words)
            for number, x in enumerate(pairs):
                # even hundredths, rounded down: the middle of the step
                where = [(self._values[word] + 1) / 100 for word in words[x : x + 2]]
                found += [(row, x, where), (row, x + 1, where)]
                before = pairs[number - 1] if number else None
                compared = before is not None and self._follows(words, before, self._compared)
                if self._follows(words, x, self._named) and not compared:
                    found.append((row, x + 2 + len(self._named), where))
        rows, places, where = zip(*found, strict=True) if found else ((), (), ())
        return Spots(
            torch.tensor(rows, dtype=torch.long, device=labels.device),
            torch.tensor(places, dtype=torch.long, device=labels.device),
            torch.tensor(where, device=labels.device).reshape(-1, 2),
        )

    def _pairs(self, words: list[int]) -> list[int]:
        """Return where two numbers stand in a row; one alone is a size."""
        pairs: list[int] = []
        for x in range(len(words) - 1):
            both = words[x] in self._values and words[x + 1] in self._values
            if both and not (pairs and pairs[-1] == x - 1):
                pairs.append(x)
        return pairs

    @staticmethod
    def _follows(words: list[int], x: int, then: list[int]) -> bool:
        return words[x + 2 : x + 2 + len(then)] == then

    def loss(self, lisa: LISA, out: TeacherForced, lesson: Asked) -> Tensor:
        """Return how far attention is from the places that are said (Kullback-Leibler)."""
        spots = self.spots(lesson.batch.labels)
        if len(spots.rows) == 0:
            return out.llm_states.sum() * 0
        begin = (lesson.batch.input_ids == IMAGE_TOKEN).long().argmax(1)[spots.rows]
        told = attention(lisa, out, spots, begin)
        side = int(told.shape[1] ** 0.5)
        middle = (torch.arange(side, device=told.device) + 0.5) / side
        down, across = torch.meshgrid(middle, middle, indexing='ij')
        patches = torch.stack([across.flatten(), down.flatten()], dim=1)
        away = (spots.where[:, None] - patches).square().sum(-1)  # (n, P)
        wanted = (-away / (2 * _SPREAD**2)).log_softmax(1)
        return (wanted.exp() * (wanted - (told + 1e-6).log())).sum(1).mean()


def attention(lisa: LISA, out: TeacherForced, spots: Spots, begin: Tensor) -> Tensor:
    """Return what the heads that look attend to while they say the words of some spots.

    Args:
        lisa: the model.
        out: what it made of conversations, with the input of its `layer`.
        spots: n words that it is to say.
        begin: (n,) long, where the image tokens begin in the row of each.

    Returns:
        (n, P), the mean of the heads' attention to each image token; the rest is on words.
    """
    looks, count = lisa.llm.model.layers[layer(lisa)], out.clip_tokens.shape[1]
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
    before = spots.words - 1 + count - 1  # the state that says the word
    likeness = torch.einsum('nhd,nhld->nhl', asks[spots.rows, :, before], keys[spots.rows])
    later = torch.arange(states.shape[1], device=begin.device) > before[:, None]
    likeness = (likeness * looks.self_attn.scaling).masked_fill(later[:, None], float('-inf'))
    told = likeness.softmax(-1).mean(1)  # (n, L)
    return told.gather(1, begin[:, None] + torch.arange(count, device=begin.device))
