# SPDX-License-Identifier: Apache-2.0
"""Sizes of released models, and the memory of their weights, without the weights.

A model is built on the meta device, which allocates nothing; the memory is counted by the rules
that refuse a model which does not fit. Sizes are those of the released config.json files;
test/test_model_zoo.py compares them with key lists of released checkpoints.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from lisa_ros.model.quantization import PRECISIONS


class Architecture(enum.Enum):
    """The shapes of a model's weights."""

    LISA_7B = 'LISA 7B'
    LISA_13B = 'LISA 13B'
    LLAVA15_7B_224 = 'LISA from LLaVA-1.5 7B, CLIP at 224 pixels'
    LLAVA15_7B_336 = 'LISA from LLaVA-1.5 7B, CLIP at 336 pixels'
    LLAVA15_13B_336 = 'LISA from LLaVA-1.5 13B, CLIP at 336 pixels'
    TABLETOP = 'lisa-tabletop'
    QWEN25_VL_3B = 'Qwen2.5-VL 3B and SAM 2.1 Hiera-L'
    QWEN25_VL_7B = 'Qwen2.5-VL 7B and SAM 2.1 Hiera-L'
    QWEN3_VL_4B = 'Qwen3-VL 4B and SAM 2.1 Hiera-L'
    QWEN3_VL_8B = 'Qwen3-VL 8B and SAM 2.1 Hiera-L'


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    parameters: int
    memory: Mapping[str, int]  # of the weights, by precision [bytes]


@cache
def size_of(architecture: Architecture) -> Size:
    """Return the size of a model, computed from its shapes; takes up to half a second."""
    if architecture is Architecture.TABLETOP:
        return _bundled()
    if architecture in _LISA:
        return _lisa(_LISA[architecture])
    return _vlm(_QWEN[architecture])


# ---- LISA


@dataclass(frozen=True)
class LisaSizes:
    """What differs between released LISAs."""

    vocabulary: int  # tokens
    width: int  # of the language model
    mlp_width: int
    layers: int  # and attention heads
    projector: str = 'linear'
    clip_size: int = 224  # side of CLIP's input [px]


_LLAMA_7B = {'width': 4096, 'mlp_width': 11008, 'layers': 32}
_LLAMA_13B = {'width': 5120, 'mlp_width': 13824, 'layers': 40}
_MLP = 'mlp2x_gelu'
_LISA = {
    Architecture.LISA_7B: LisaSizes(32004, **_LLAMA_7B),
    Architecture.LISA_13B: LisaSizes(32003, **_LLAMA_13B),
    Architecture.LLAVA15_7B_224: LisaSizes(32003, **_LLAMA_7B, projector=_MLP),
    Architecture.LLAVA15_7B_336: LisaSizes(32003, **_LLAMA_7B, projector=_MLP, clip_size=336),
    Architecture.LLAVA15_13B_336: LisaSizes(32003, **_LLAMA_13B, projector=_MLP, clip_size=336),
}


def _lisa(sizes: LisaSizes) -> Size:
    """Return the size of a LISA with CLIP ViT-L/14 and SAM ViT-H."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig

    from lisa_ros.model.assembly import weight_bytes
    from lisa_ros.model.lisa import LISA
    from lisa_ros.model.lisa_config import LisaConfig, sam_config

    config = LisaConfig(
        clip=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=sizes.clip_size,
            patch_size=14,
        ),
        llama=LlamaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp_width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.layers,
        ),
        sam=sam_config(
            image_size=1024,
            width=1280,
            depth=32,
            heads=16,
            global_layers=(7, 15, 23, 31),
            prompt_width=256,
        ),
        seg_token_id=sizes.vocabulary - 1,
        mm_projector_type=sizes.projector,
    )
    with torch.device('meta'):
        model = LISA(config)
    return Size(
        sum(weight.numel() for weight in model.parameters()),
        {precision: weight_bytes(model, precision) for precision in PRECISIONS},
    )


def _bundled() -> Size:
    """Return the size of the model in this package, from its own files."""
    import torch

    from lisa_ros.model.assembly import weight_bytes
    from lisa_ros.model.json_file import JsonFields
    from lisa_ros.model.lisa import LISA
    from lisa_ros.model.lisa_config import LisaConfig
    from lisa_ros.resources import DEFAULT_MODEL, WEIGHTS

    fields = JsonFields.read(WEIGHTS / DEFAULT_MODEL / 'config.json')
    with torch.device('meta'):
        model = LISA(LisaConfig.from_fields(fields))
    return Size(
        sum(weight.numel() for weight in model.parameters()),
        {precision: weight_bytes(model, precision) for precision in PRECISIONS},
    )


# ---- a vision-language model with SAM 2


@dataclass(frozen=True)
class QwenSizes:
    """What differs between released Qwen-VLs: fields of their config.json."""

    text: Mapping[str, object]
    vision: Mapping[str, object]
    is_qwen3: bool = False
    tied: bool = False  # the output layer has the weights of the input layer


_QWEN25_VISION = {'depth': 32, 'hidden_size': 1280, 'intermediate_size': 3420, 'num_heads': 16}
_QWEN3_TEXT = {
    'vocab_size': 151936,
    'num_hidden_layers': 36,
    'num_attention_heads': 32,
    'num_key_value_heads': 8,
    'head_dim': 128,
}
_QWEN3_VISION = {'num_heads': 16, 'patch_size': 16, 'num_position_embeddings': 2304}
_QWEN = {
    Architecture.QWEN25_VL_3B: QwenSizes(
        {
            'vocab_size': 151936,
            'hidden_size': 2048,
            'intermediate_size': 11008,
            'num_hidden_layers': 36,
            'num_attention_heads': 16,
            'num_key_value_heads': 2,
        },
        {**_QWEN25_VISION, 'out_hidden_size': 2048},
        tied=True,
    ),
    Architecture.QWEN25_VL_7B: QwenSizes(
        {
            'vocab_size': 152064,
            'hidden_size': 3584,
            'intermediate_size': 18944,
            'num_hidden_layers': 28,
            'num_attention_heads': 28,
            'num_key_value_heads': 4,
        },
        {**_QWEN25_VISION, 'out_hidden_size': 3584},
    ),
    Architecture.QWEN3_VL_4B: QwenSizes(
        {**_QWEN3_TEXT, 'hidden_size': 2560, 'intermediate_size': 9728},
        {
            **_QWEN3_VISION,
            'depth': 24,
            'hidden_size': 1024,
            'intermediate_size': 4096,
            'out_hidden_size': 2560,
            'deepstack_visual_indexes': [5, 11, 17],
        },
        is_qwen3=True,
        tied=True,
    ),
    Architecture.QWEN3_VL_8B: QwenSizes(
        {**_QWEN3_TEXT, 'hidden_size': 4096, 'intermediate_size': 12288},
        {
            **_QWEN3_VISION,
            'depth': 27,
            'hidden_size': 1152,
            'intermediate_size': 4304,
            'out_hidden_size': 4096,
            'deepstack_visual_indexes': [8, 16, 24],
        },
        is_qwen3=True,
    ),
}
# of facebook/sam2.1-hiera-large
_HIERA_L = {
    'hidden_size': 144,
    'num_attention_heads': 2,
    'blocks_per_stage': [2, 6, 36, 4],
    'embed_dim_per_stage': [144, 288, 576, 1152],
    'num_attention_heads_per_stage': [2, 4, 8, 16],
    'window_size_per_stage': [8, 4, 16, 8],
    'global_attention_blocks': [23, 33, 43],
}


def _vlm(sizes: QwenSizes) -> Size:
    """Return the size of a vision-language model and of SAM 2.1 Hiera-L together."""
    import math

    from lisa_ros.model.sam2 import sam2_bytes
    from lisa_ros.vlm.qwen_vl import weight_bytes

    qwen, sam2 = qwen_shapes(sizes), _sam2_shapes()
    return Size(
        sum(math.prod(shape) for shapes in (qwen, sam2) for shape in shapes.values()),
        {precision: weight_bytes(qwen, precision) + sam2_bytes(sam2) for precision in PRECISIONS},
    )


def qwen_shapes(sizes: QwenSizes) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a vision-language model."""
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    config_class, model_class = (
        (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
        if sizes.is_qwen3
        else (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)
    )
    config = config_class(
        text_config={**sizes.text, 'tie_word_embeddings': sizes.tied},
        vision_config=dict(sizes.vision),
        tie_word_embeddings=sizes.tied,
    )
    with torch.device('meta'):
        model = model_class(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _sam2_shapes() -> dict[str, tuple[int, ...]]:
    import torch
    from transformers import Sam2Config, Sam2Model
    from transformers.models.sam2.configuration_sam2 import (
        Sam2HieraDetConfig,
        Sam2VisionConfig,
    )

    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(**_HIERA_L),
        backbone_channel_list=_HIERA_L['embed_dim_per_stage'][::-1],
    )
    with torch.device('meta'):
        model = Sam2Model(Sam2Config(vision_config=vision))
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}
