# SPDX-License-Identifier: Apache-2.0
"""Sizes and first weights of lisa-tabletop."""

from __future__ import annotations

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig

from lisa_ros.model import image_processing
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig, sam_config
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.tabletop.answer_text import NUMBER_WORDS
from lisa_ros.training.tabletop.vocabulary import has_number_tokens

PATCH_SIZE = 16  # of CLIP [px]
MAX_POSITIONS = 1024  # of the language model [tokens]


def default_config(tokenizer: Tokenizer) -> LisaConfig:
    """Return the sizes that lisa-tabletop was first trained with: 12 million weights."""
    return LisaConfig(
        clip=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=5,
            num_attention_heads=4,
            image_size=224,
            patch_size=PATCH_SIZE,
            projection_dim=256,
        ),
        llama=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_POSITIONS,
            rms_norm_eps=1e-5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        sam=sam_config(
            image_size=256,
            patch_size=16,
            width=256,
            depth=6,
            heads=4,
            global_layers=(2, 5),
            window=8,
            vision_mlp=704,
            prompt_width=128,
            decoder_mlp=256,
            relative_positions=False,
            iou_width=128,
        ),
        seg_token_id=tokenizer.seg_token_id,
        mm_vision_select_layer=-1,  # the last layer: all layers are trained for this task
        out_dim=128,
        template='plain',
        explain='Say why.',
    )


def clip_preprocessing(config: LisaConfig) -> image_processing.ClipPreprocessing:
    """Return how images are prepared for CLIP: resized to a square, without a crop."""
    side = config.clip.image_size
    return image_processing.ClipPreprocessing(size=(side, side), crop=None)


def resize_position_embedding(
    state: dict[str, torch.Tensor], patches: int
) -> dict[str, torch.Tensor]:
    """Return weights whose CLIP position embedding is interpolated to another patch count."""
    name = 'clip.embeddings.position_embedding.weight'
    class_row, patch_rows = state[name][:1], state[name][1:]
    old_side, side = round(len(patch_rows) ** 0.5), round(patches**0.5)
    grid = patch_rows.float().T.unflatten(1, (old_side, old_side))[None]  # (1, W, old, old)
    grid = nn.functional.interpolate(grid, (side, side), mode='bicubic', align_corners=False)
    return {**state, name: torch.cat([class_row, grid[0].flatten(1).T.to(patch_rows)])}


@torch.no_grad()
def init_matching_heads(lisa: LISA, layers: int = 2) -> None:
    """Make the last attention head of the first layers attend to tokens similar to the query.

    Its keys start equal to its queries. The loss `patch_names` moves image tokens towards the
    embeddings of the names of what they show. So the token "mug" attends to mugs from the start,
    and the model can learn whether there is one. From random keys that takes thousands of steps.
    """
    for layer in lisa.llm.model.layers[:layers]:
        attention = layer.self_attn
        queries, keys = (
            projection.weight[-attention.head_dim :]
            for projection in (attention.q_proj, attention.k_proj)
        )
        queries *= 1.5
        keys.copy_(queries)


@torch.no_grad()
def init_number_embeddings(lisa: LISA, tokenizer: Tokenizer, frequencies: int = 8) -> None:
    """Place the embeddings of number tokens on a smooth curve, so that neighbours are similar.

    With random rows the model would have to learn each number separately. Does nothing if the
    vocabulary has no number tokens.
    """
    if not has_number_tokens(tokenizer):
        return
    token_ids = [tokenizer.encode(number)[0] for number in NUMBER_WORDS]
    phases = torch.linspace(0, torch.pi, len(token_ids))[:, None] * torch.arange(frequencies)
    for table in (lisa.llm.get_input_embeddings().weight, lisa.llm.lm_head.weight):
        directions = torch.randn(frequencies, table.shape[1])
        directions = directions * table.std() * (2 / frequencies) ** 0.5
        table[token_ids] = (phases.cos() @ directions).to(table)
