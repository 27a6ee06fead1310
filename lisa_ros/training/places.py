# SPDX-License-Identifier: Apache-2.0
"""CLIP learns to say where each patch stands, and goes on seeing what it saw.

What CLIP makes of a patch tells where the patch is to about its own width: enough for seeing, too
little for "left of". Here it learns to carry the place along the directions in which its states
hardly differ from picture to picture, as a few waves over the picture, and to leave everything
else as it was (its own states before are the teacher). The projector hands the waves on along
directions in which image tokens hardly differ either, so the words find a clear place where there
was nothing.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lisa_ros import images
from lisa_ros.model.lisa import LISA
from lisa_ros.training import data

WAVES = 3  # along each side of the picture: cos(k pi x), k = 1 ... WAVES
_LOUD = 15.0  # amplitude of the waves [deviations of the quietest directions]
_HEARD = 0.7  # the same in an image token whose mean square is one
_BATCH, _MANY = 16, 64  # pictures: of a step, to know states by
_SAMPLE, _EXAM = 2**30, 2**30 + 1  # steps that no run comes to
WEIGHTS = {'seen': 1.0, 'place': 0.0}  # of each loss; `place` is only watched


class Placing:
    """The pupil of the loop that learns places; it trains what of CLIP may be trained."""

    weights = WEIGHTS

    def __init__(self, lisa: LISA, clip: images.ClipRecipe, scenes: data.SceneSet, seed: int):
        """Take a model whose `mm_projector` has an addition (`model.additions`) of rank 2 WAVES.

        Args:
            lisa: what it knows of places goes into its CLIP and its projector.
            clip: how its pictures are made ready.
            scenes: to learn from.
            seed: of the pictures that are drawn.
        """
        self.lisa, self.clip, self.scenes, self.seed = lisa, clip, scenes, seed
        self.module = nn.ModuleDict({'clip': lisa.clip})
        self.teacher = copy.deepcopy(lisa.clip).requires_grad_(False).eval()
        some = self.draw(_SAMPLE, 0, _MANY)
        with torch.no_grad():
            states = self._states(self.teacher, some)
            flat = states.flatten(0, 1)
            self.mean = flat.mean(0)
            spread, ways = torch.linalg.eigh((flat - self.mean).double().T.cov())
            self.quiet = ways[:, : 2 * WAVES].T.float()  # (2 WAVES, W)
            self.scale = (ways * (spread + 1).rsqrt() @ ways.T).float()  # errors count by this
            self.loud = _LOUD * float(spread[: 2 * WAVES].mean().sqrt())
            self.waves = _waves(states.shape[1])  # (P, 2 WAVES)
            self._hand_on(lisa.project_clip(states).flatten(0, 1))

    def _states(self, clip: nn.Module, pixels: Tensor) -> Tensor:
        """Return a CLIP's states of the patches, (B, P, W)."""
        own, self.lisa.clip = self.lisa.clip, clip
        try:
            return self.lisa.clip_states(pixels).float()
        finally:
            self.lisa.clip = own

    def _hand_on(self, tokens: Tensor) -> None:
        """Let the projector say the waves along the quietest directions of its tokens."""
        size = tokens.pow(2).mean(-1, keepdim=True).sqrt()
        _, ways = torch.linalg.eigh((tokens / size).double().T.cov())
        ways = ways[:, : 2 * WAVES].float() * _HEARD * size.mean() / self.loud  # (D, 2 WAVES)
        projector = self.lisa.mm_projector
        change = ways - projector.weight @ self.quiet.T  # instead of what it said of them before
        addition = projector.parametrizations.weight[0]
        rank = 2 * WAVES
        addition.up[:, :rank] = change
        addition.down[:rank] = self.quiet
        projector.bias -= change @ (self.quiet @ self.mean)

    def draw(self, step: int, part: int, count: int = _BATCH) -> Tensor:
        """Return some pictures for CLIP, (B, 3, h, w), the same whenever asked for."""
        rng = np.random.default_rng((self.seed, step, part))
        views = []
        for i in rng.integers(len(self.scenes), size=count):
            view = data.augment(
                rng, self.scenes.colour[i], self.scenes.ids[i], self.scenes.tables[i]
            )
            views.append(images.clip_pixels(view[0], self.clip))
        return torch.from_numpy(np.stack(views))

    def losses(self, lesson: Tensor, step: int) -> dict[str, Tensor]:
        """Return how far the states are from what they were, with the waves in them."""
        with torch.no_grad():
            before = self._states(self.teacher, lesson)
        states = self._states(self.lisa.clip, lesson)
        silent = before - (before - self.mean) @ self.quiet.T @ self.quiet
        error = states - silent - self.loud * self.waves @ self.quiet
        return {'seen': (error @ self.scale).pow(2).mean(), 'place': self._off(states)}

    def _off(self, states: Tensor) -> Tensor:
        """Return the deviation of the waves that states tell, whose own deviation is one."""
        told = (states.detach() - self.mean) @ self.quiet.T / self.loud
        return (told - self.waves).pow(2).mean().sqrt()

    def validate(self, run: Path) -> dict[str, float]:
        """Return how far off waves and everything else are, on pictures not drawn before."""
        lesson = self.draw(_EXAM, 0, _MANY)
        before, states = (self._states(c, lesson) for c in (self.teacher, self.lisa.clip))
        others = torch.eye(len(self.mean)) - self.quiet.T @ self.quiet
        moved = ((states - before) @ others @ self.scale).pow(2).mean()
        varied = ((before - self.mean) @ others @ self.scale).pow(2).mean()
        return {'val_place': float(self._off(states)), 'val_moved': float(moved / varied)}

    def export(self, run: Path) -> None:
        """Write nothing: whoever gave the model writes it."""


def _waves(patches: int) -> Tensor:
    """Return the waves at each patch of a square grid, (P, 2 WAVES), of mean square one."""
    side = int(patches**0.5)
    middle = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(middle, middle, indexing='ij')
    turns = torch.pi * torch.arange(1, WAVES + 1)
    told = [(t.flatten()[:, None] * turns).cos() for t in (columns, rows)]
    return 2**0.5 * torch.cat(told, dim=1)
