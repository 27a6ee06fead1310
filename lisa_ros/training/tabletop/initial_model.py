# SPDX-License-Identifier: Apache-2.0
"""Builds the model that a pretraining run starts with: random weights, or those of a folder."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from lisa_ros.model import checkpoint, lora
from lisa_ros.model.checkpoint import Checkpoint
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop.scene_graph import SceneGraph
from lisa_ros.training.distributed import init_distributed, rank_zero_first
from lisa_ros.training.tabletop.initialization import (
    default_config,
    init_matching_heads,
    init_number_embeddings,
    resize_position_embedding,
)
from lisa_ros.training.tabletop.pretrain_config import PretrainConfig
from lisa_ros.training.tabletop.vocabulary import (
    has_number_tokens,
    remap_vocabulary,
    write_tokenizer,
)

_VISION_PARTS = ('clip.', 'mm_projector.', 'sam.')
_FROZEN_WITH_LORA = ('sam.vision_encoder.', 'sam.prompt_encoder.')


@dataclass(frozen=True)
class InitialModel:
    """A model on the CPU, in training mode, with its tokenizer."""

    lisa: LISA
    tokenizer: Tokenizer


def build(
    config: PretrainConfig, run: Path, scene_graphs: list[SceneGraph], device: str
) -> InitialModel:
    """Return the model as a run starts with it; random weights come from torch's global seed.

    Args:
        config: `init_from`, `init_vision_from` and the options about them.
        run: its `tokenizer/` is read, or written first, unless the start model has the tokenizer.
        scene_graphs: training scenes, which a new tokenizer is trained on.
        device: that the model will be trained on; the CPU gets eager attention in the vision
            encoders, whose backward pass takes a third of the time there.
    """
    folder = config.init_from or config.init_vision_from
    start = checkpoint.load(folder) if folder else None
    if start is None or config.rebuild_tokenizer:
        tokenizer = _run_tokenizer(run / 'tokenizer', scene_graphs, device)
        lisa_config = default_config(tokenizer)
    else:
        tokenizer, lisa_config = start.tokenizer, start.model.config
    lisa_config = _with_image_size(config, lisa_config, start)
    lisa = LISA(lisa_config, 'eager' if device == 'cpu' else 'sdpa')
    _init_weights(config, lisa, tokenizer, start)
    if config.lora_rank:
        added = lora.load_lora(config.init_from)
        lora.add_lora(lisa, config.lora_rank, _FROZEN_WITH_LORA, added)
    return InitialModel(lisa, tokenizer)


def _run_tokenizer(folder: Path, scene_graphs: list[SceneGraph], device: str) -> Tokenizer:
    """Return the tokenizer of a run; train it first if the folder does not exist."""
    rank, world, _ = init_distributed(device)
    with rank_zero_first(rank, world):
        if not folder.exists():
            unfinished = folder.with_name('tokenizer.new')
            write_tokenizer(unfinished, scene_graphs)
            unfinished.replace(folder)
    return Tokenizer.load(folder)


def _with_image_size(
    config: PretrainConfig, lisa_config: LisaConfig, start: Checkpoint | None
) -> LisaConfig:
    """Return a config whose CLIP has the image size of the options or of the start model."""
    clip = copy.deepcopy(lisa_config.clip)
    start_config = start.model.config if start else lisa_config
    clip.image_size = config.clip_image_size or start_config.clip.image_size
    return dataclasses.replace(lisa_config, clip=clip)


def _init_weights(
    config: PretrainConfig, lisa: LISA, tokenizer: Tokenizer, start: Checkpoint | None
) -> None:
    """Load the weights of the start model, and initialize what it does not have."""
    state: dict[str, torch.Tensor] = {}
    if start is not None:
        state = resize_position_embedding(start.model.state_dict(), lisa.config.image_tokens)
    if start is None or not config.init_from:
        init_matching_heads(lisa)
        init_number_embeddings(lisa, tokenizer)
        vision_state = {n: t for n, t in state.items() if n.startswith(_VISION_PARTS)}
        lisa.load_state_dict(vision_state, strict=False)
        return
    if config.rebuild_tokenizer:
        state = remap_vocabulary(state, start.tokenizer, tokenizer)
    lisa.load_state_dict(state)
    if not has_number_tokens(start.tokenizer):
        init_number_embeddings(lisa, tokenizer)
