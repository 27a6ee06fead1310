# SPDX-License-Identifier: Apache-2.0
"""Drafts: what the model may say next, checked in one pass together with what it has to read.

The drafts form a tree of tokens behind the text. The language model reads text and tree at once;
each token sees the text and the tokens before it on its own branch. Where the model itself would
have chosen the token of a branch, that token costs no pass of its own. The answer is exactly that
of greedy decoding (speculative decoding: arXiv 2211.17192; token trees: arXiv 2305.09781).

Drafts come from replies: usual ones of the model, and its newest ones.

Letters: K tokens of the tree.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROOT = -1  # the last token of the text, as a parent

_OWN_WEIGHT = 100.0  # of the last reply to the same question
_RECENT_WEIGHT = 2.0  # of the newest reply; the n-th newest weighs 1/n of it
_USUAL_WEIGHT = 1.0  # of the first usual reply; the n-th weighs 1/n of it


@dataclass(frozen=True)
class DraftTree:
    """Tokens behind a text; a parent comes before its children."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()  # index of the token before; ROOT: the text
    _children: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    def child(self, parent: int, token: int) -> int | None:
        """Return the token `token` after `parent`; None if no draft has it there."""
        return self._children.get((parent, token))

    def depths(self) -> list[int]:
        """Return how far behind the text each token is, from 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return depths

    def mask(self) -> Tensor:
        """Return which tokens each token sees, (K, K) bool: itself and those before it."""
        mask = torch.eye(len(self), dtype=torch.bool)
        for token, parent in enumerate(self.parents):
            if parent != ROOT:
                mask[token] |= mask[parent]
        return mask


@dataclass(frozen=True)
class Drafts:
    """Replies that an answer may have."""

    replies: tuple[tuple[int, ...], ...] = ()  # token ids, each with its </s>
    weights: tuple[float, ...] = ()  # how probable each is, relative to the others
    max_tokens: int = 0  # of a tree

    def tree(self, answer: Sequence[int] = ()) -> DraftTree:
        """Return the most probable tokens after the beginning of an answer."""
        start, beginning = len(answer), tuple(answer)
        tokens: list[int] = []
        parents: list[int] = []
        weights: list[float] = []
        children: dict[tuple[int, int], int] = {}
        for reply, weight in zip(self.replies, self.weights, strict=True):
            if reply[:start] != beginning:
                continue
            node = ROOT
            end = min(len(reply) - 1, start + self.max_tokens)  # nothing comes after </s>
            for token in reply[start:end]:
                parent, node = node, children.setdefault((node, token), len(tokens))
                if node == len(tokens):
                    tokens.append(token)
                    parents.append(parent)
                    weights.append(0.0)
                weights[node] += weight
        # A token weighs no less than those after it, and is made before them.
        order = sorted(range(len(tokens)), key=lambda node: -weights[node])[: self.max_tokens]
        number = {ROOT: ROOT, **{node: place for place, node in enumerate(order)}}
        chosen = tuple(tokens[node] for node in order)
        above = tuple(number[parents[node]] for node in order)
        pairs = zip(above, chosen, strict=True)
        return DraftTree(chosen, above, {pair: place for place, pair in enumerate(pairs)})


NO_DRAFTS = Drafts()


class ReplyMemory:
    """Token ids of the usual replies of a model and of its newest different ones; any thread."""

    def __init__(self, usual: Sequence[Sequence[int]] = (), kept: int = 64):
        """Begin without new replies.

        Args:
            usual: replies with their </s>, the most usual first.
            kept: new replies to remember.
        """
        self._usual = [tuple(reply) for reply in usual]
        self._kept, self._lock = kept, threading.Lock()
        self._by_question: OrderedDict[str, tuple[int, ...]] = OrderedDict()  # the newest last

    def add(self, question: str, reply: Sequence[int]) -> None:
        """Remember a reply, with its </s>, to a question."""
        with self._lock:
            self._by_question.pop(question, None)
            self._by_question[question] = tuple(reply)
            while len(self._by_question) > self._kept:
                self._by_question.popitem(last=False)

    def clear(self) -> None:
        """Forget all replies but the usual ones."""
        with self._lock:
            self._by_question.clear()

    def drafts(self, question: str, max_tokens: int) -> Drafts:
        """Return the drafts for a question: its last reply, those to others, usual ones."""
        with self._lock:
            own = self._by_question.get(question)
            recent = list(reversed(self._by_question.values()))
        weighted = [(own, _OWN_WEIGHT)] if own else []
        weighted += [(reply, _RECENT_WEIGHT / n) for n, reply in enumerate(recent, 1)]
        weighted += [(reply, _USUAL_WEIGHT / n) for n, reply in enumerate(self._usual, 1)]
        replies = tuple(reply for reply, _ in weighted)
        return Drafts(replies, tuple(weight for _, weight in weighted), max_tokens)
