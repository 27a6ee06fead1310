# SPDX-License-Identifier: Apache-2.0
"""CLIP learns to say where each patch stands, and goes on seeing what it saw.

A small CLIP that was trained to see tells a patch's place in the picture to about two patches:
enough for seeing, too little for "left of". Here its states are given the place as a few waves
over the picture, along directions in which they hardly differ otherwise, and its projector hands
the waves on along directions in which image tokens hardly differ either:

    begin   in closed form: the position embedding says the waves, and no layer listens to the
            directions that carry them, so that they come out as they went in
    learn   what is left, by distillation: the first norm divides each patch by its own contrast,
            and the waves with it. The states before are the teacher, with clean waves in them

The language model knows nothing of the waves yet: it learns to read them afterwards (`train`,
with a memory of what these eyes see).
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lisa_ros.model import checkpoint, export, image_processing
from lisa_ros.training.tabletop import dataset
from lisa_ros.training.tabletop.initialization import clip_preprocessing
from lisa_ros.training.trainer import Trainer, TrainerConfig, has_fast_bf16

WAVES = 4  # along each side of the picture: cos(k pi x), k = 1 ... WAVES
_LOUD = 2.2  # amplitude of the waves in CLIP's states; the quiet directions differ by 0.5 there
_HEARD = 0.7  # the same in an image token whose mean square is one
_BATCH, _MANY = 16, 64  # pictures: of a step, to know states by
_SAMPLE, _EXAM = 2**30, 2**30 + 1  # steps that no run comes to
PACE = TrainerConfig(
    steps=260,
    learning_rate=2e-3,
    warmup_steps=20,
    decay_fraction=0.6,
    betas=(0.9, 0.98),
    max_grad_norm=5.0,
    bf16=has_fast_bf16(),
)


class PositionDistillationTask:
    """The pupil of the loop whose CLIP learns places; nothing else of the model is trained."""

    weights = {'seen': 1.0, 'place': 0.7}  # noqa: RUF012  # of the protocol

    def __init__(self, start: Path, scenes: dataset.SceneSet, seed: int = 0):
        """Take a model from its folder, and pictures to learn from."""
        loaded = checkpoint.load(start)
        self.lisa, self.tokenizer = loaded.model.float(), loaded.tokenizer
        self.scenes, self.seed = scenes, seed
        self.clip_recipe = clip_preprocessing(self.lisa.config)
        self.teacher = copy.deepcopy(self.lisa.clip).requires_grad_(False).eval()
        self.module = nn.ModuleDict({'clip': self.lisa.clip})
        self.waves = position_codes(self.lisa.config.image_tokens)  # (P, 2 WAVES)
        pixels = self.draw(_SAMPLE, 0, _MANY)
        with torch.no_grad():
            states = self._states(self.teacher, pixels).flatten(0, 1)
            self.mean = states.mean(0)
            spread, ways = torch.linalg.eigh(states.double().T.cov())
            self.scale = (ways * (spread + 1).rsqrt() @ ways.T).float()  # errors count by this
            self.quiet = inject_position_codes(self.lisa.clip, pixels, self.waves)  # (2 WAVES, W)
            self._hand_on(states)
        self.others = torch.eye(len(self.mean)) - self.quiet.T @ self.quiet

    def _states(self, clip: nn.Module, pixels: Tensor) -> Tensor:
        """Return a CLIP's states of the patches, (B, P, W)."""
        own, self.lisa.clip = self.lisa.clip, clip
        try:
            return self.lisa.clip_states(pixels).float()
        finally:
            self.lisa.clip = own

    def _hand_on(self, states: Tensor) -> None:
        """Let the projector say the waves along the quietest directions of its tokens."""
        projector = self.lisa.mm_projector
        tokens = projector(states)
        size = tokens.pow(2).mean(-1, keepdim=True).sqrt()
        _, ways = torch.linalg.eigh((tokens / size).double().T.cov())
        said = ways[:, : len(self.quiet)].float() * _HEARD * size.mean() / _LOUD
        change = said - projector.weight @ self.quiet.T  # instead of what was said of them before
        projector.weight += change @ self.quiet
        projector.bias -= change @ (self.quiet @ self.mean)

    def draw(self, step: int, part: int, count: int = _BATCH) -> Tensor:
        """Return some pictures for CLIP, (B, 3, h, w), the same whenever they are asked for."""
        rng = np.random.default_rng((self.seed, step, part))
        scenes = self.scenes
        views = [
            dataset.augment(rng, scenes.colour[i], scenes.ids[i], scenes.tables[i])[0]
            for i in rng.integers(len(scenes), size=count)
        ]
        return torch.from_numpy(
            np.stack([image_processing.clip_pixels(v, self.clip_recipe) for v in views])
        )

    def losses(self, lesson: Tensor, step: int) -> dict[str, Tensor]:
        """Return how far the states are from what they were, and from clean waves."""
        error = self._error(lesson)
        return {
            'seen': (error @ self.others @ self.scale).pow(2).sum(-1).mean(),
            'place': (error @ self.quiet.T).pow(2).sum(-1).mean(),
        }

    def _error(self, pixels: Tensor) -> Tensor:
        """Return how far the states are from the teacher's with clean waves, (B, P, W)."""
        with torch.no_grad():
            before = self._states(self.teacher, pixels)
        wanted = (before - self.mean) @ self.others + _LOUD * self.waves @ self.quiet
        return self._states(self.lisa.clip, pixels) - self.mean - wanted

    @torch.no_grad()
    def validate(self, run: Path) -> dict[str, float]:
        """Return deviations: of the waves from clean ones, of all else from what it was."""
        pixels = self.draw(_EXAM, 0, _MANY)
        error, before = self._error(pixels), self._states(self.teacher, pixels) - self.mean
        moved = (error @ self.others).pow(2).sum() / (before @ self.others).pow(2).sum()
        return {
            'val_place': float((error @ self.quiet.T).pow(2).mean().sqrt() / _LOUD),
            'val_moved': float(moved.sqrt()),
        }

    def export(self, run: Path) -> None:
        """Write the model to `model/`."""
        export.save(self.lisa, self.tokenizer, self.clip_recipe, run / 'model')


def position_codes(patches: int) -> Tensor:
    """Return the waves at each patch of a square grid, (P, 2 WAVES), of mean square one."""
    side = int(patches**0.5)
    middle = (torch.arange(side) + 0.5) / side
    down, across = torch.meshgrid(middle, middle, indexing='ij')
    turns = torch.pi * torch.arange(1, WAVES + 1)
    told = [(along.flatten()[:, None] * turns).cos() for along in (across, down)]
    return 2**0.5 * torch.cat(told, dim=1)


@torch.no_grad()
def inject_position_codes(clip: nn.Module, pixels: Tensor, told: Tensor) -> Tensor:
    """Let a CLIP carry waves from its position embedding to its last states, in closed form.

    Args:
        clip: a CLIPVisionModel; its position embedding and the matrices behind its norms change.
        pixels: (B, 3, h, w), to know its states by.
        told: (P, K), K waves at each patch.

    Returns:
        (K, W), the directions of its states that carry them, orthonormal.
    """
    norms = {'first': clip.pre_layrnorm}
    for number, block in enumerate(clip.encoder.layers):
        norms |= {(number, 1): block.layer_norm1, (number, 2): block.layer_norm2}
    given: dict = {}
    hooks = [
        norm.register_forward_hook(lambda _, inputs, __, key=key: given.update({key: inputs[0]}))
        for key, norm in norms.items()
    ]
    layers = clip(pixels, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()

    quiet = _quiet(layers, clip.pre_layrnorm.weight, told.shape[1])
    contrast = given['first'][:, 1:].std(-1, unbiased=False).mean(0)  # (P,), which the norm takes
    embedding = clip.embeddings.position_embedding.weight
    said = _LOUD * told * contrast[:, None]
    embedding[1:] += said @ (quiet / clip.pre_layrnorm.weight)
    for number, block in enumerate(clip.encoder.layers):
        attention = block.self_attn
        listeners = {
            1: (attention.q_proj, attention.k_proj, attention.v_proj),
            2: (block.mlp.fc1,),
        }
        for which, linears in listeners.items():
            norm = norms[number, which]
            states = given[number, which][:, 1:]
            usual = quiet @ F.layer_norm(states, states.shape[-1:]).mean((0, 1))
            for linear in linears:
                _stop_listening(linear, norm, quiet, usual)
    return quiet


def _quiet(layers: tuple[Tensor, ...], gain: Tensor, count: int) -> Tensor:
    """Return the directions, (count, W), in which the states of no layer differ much."""
    width = len(gain)
    spread = torch.zeros(width, width, dtype=torch.double)
    for states in (*layers, layers[-1]):  # the last counts twice: there the waves are read
        cov = states[:, 1:].flatten(0, 1).double().T.cov()
        spread += cov / cov.trace()
    # not along what norms take away, nor where the first one lets nothing through
    spread += 1e3
    spread += torch.diag(1e-6 / (gain.double().abs() + 0.05) ** 2)
    return torch.linalg.eigh(spread)[1][:, :count].T.float()


def _stop_listening(linear: nn.Linear, norm: nn.LayerNorm, quiet: Tensor, usual: Tensor) -> None:
    """Let a layer behind a norm take `usual`, (K,), for what is said along `quiet`, (K, W)."""
    heard = (linear.weight * norm.weight) @ quiet.T  # (rows, K)
    linear.bias += heard @ (usual + quiet @ (norm.bias / norm.weight))
    linear.weight -= heard @ (quiet / norm.weight)


def distill(run: Path, scenes: Path, start: Path, pace: TrainerConfig = PACE) -> bool:
    """Give a model's CLIP the waves, in a folder, or go on with what it holds.

    Returns:
        False if a signal stopped it before its end.
    """
    pupil = PositionDistillationTask(start, dataset.SceneSet.load(scenes / 'train'), pace.seed)
    return Trainer(run, pace, pupil).train()
