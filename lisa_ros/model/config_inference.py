# SPDX-License-Identifier: Apache-2.0
"""Infers all sizes of a LISA from the shapes of its weights and its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.errors import CheckpointError
from lisa_ros.model.key_mapping import LISA_SAM_PREFIX
from lisa_ros.model.lisa_config import LisaConfig, sam_config
from lisa_ros.model.model_folder import error_summary

Shapes = Mapping[str, tuple[int, ...]]  # of weights by name

_CLIP_FIELDS = (
    *('hidden_size', 'intermediate_size', 'projection_dim', 'num_hidden_layers'),
    *('num_attention_heads', 'num_channels', 'image_size', 'patch_size'),
    *('hidden_act', 'layer_norm_eps'),
)


def infer_sam(shapes: Shapes) -> SamConfig:
    """Return the config of a SAM from its weights' shapes, under segment-anything's names.

    The shapes do not show the number of attention heads in the mask decoder. It is 8 in all sizes
    of segment-anything (build_sam.py).

    Raises:
        CheckpointError: a weight that shows a size is missing, or has an impossible shape.
    """
    try:
        _, grid, _, width = shapes['image_encoder.pos_embed']
        patch = shapes['image_encoder.patch_embed.proj.weight'][-1]
        block = 'image_encoder.blocks.{}.attn.rel_pos_h'.format
        depth = _count(shapes, r'image_encoder\.blocks\.(\d+)\.')
        # A window (or the whole grid) with a side of n patches has 2n - 1 relative positions.
        sides = [(shapes[block(index)][0] + 1) // 2 for index in range(depth)]
        windows = {side for side in sides if side != grid}
        mlp = shapes['image_encoder.blocks.0.mlp.lin1.weight'][0]
        decoder = 'mask_decoder.transformer.layers'
        return sam_config(
            image_size=grid * patch,
            width=width,
            depth=depth,
            heads=width // shapes[block(0)][1],
            global_layers=tuple(i for i, side in enumerate(sides) if side == grid),
            prompt_width=shapes['prompt_encoder.no_mask_embed.weight'][-1],
            patch_size=patch,
            window=windows.pop() if windows else grid,
            vision_mlp=mlp,
            vision_bias='image_encoder.blocks.0.attn.qkv.bias' in shapes,
            decoder_mlp=shapes[f'{decoder}.0.mlp.lin1.weight'][0],
            decoder_depth=_count(shapes, re.escape(decoder) + r'\.(\d+)\.'),
            iou_width=shapes['mask_decoder.iou_prediction_head.layers.0.weight'][0],
            multimask_outputs=shapes['mask_decoder.mask_tokens.weight'][0] - 1,
            mask_channels=shapes['prompt_encoder.mask_downscaling.3.weight'][0],
        )
    except KeyError as error:
        raise CheckpointError(
            f'the SAM in these weights lacks {error.args[0]}, which shows its size: the file is '
            "cut off, or not in segment-anything's layout"
        ) from error
    except (IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f'the SAM in these weights has impossible sizes ({error}): the file is damaged, '
            "or not in segment-anything's layout"
        ) from error


def _count(shapes: Shapes, pattern: str) -> int:
    """Return the number of layers: one more than the highest index that `pattern` matches."""
    return 1 + max(
        (int(match[1]) for key in shapes if (match := re.match(pattern, key))), default=-1
    )


def infer_config(
    shapes: Shapes, config: Mapping, clip: CLIPVisionConfig, seg_token_id: int, template: str
) -> LisaConfig:
    """Return the LisaConfig of a released checkpoint.

    Args:
        shapes: of all weights, under the released names.
        config: content of the folder's config.json.
        clip: config of the vision tower.
        seg_token_id: from the tokenizer.
        template: the conversation template.

    Raises:
        CheckpointError: the config lacks a field or has an impossible value; or a weight that
            shows a size is missing or has another rank.
    """
    sam = infer_sam(
        {
            key.removeprefix(LISA_SAM_PREFIX): shape
            for key, shape in shapes.items()
            if key.startswith(LISA_SAM_PREFIX)
        }
    )
    try:
        llama = _llama_config(shapes, config)
        out_dim = shapes['model.text_hidden_fcs.0.2.weight'][0]
    except KeyError as error:
        raise CheckpointError(
            f'neither config.json nor the weights have {error.args[0]!r}: the checkpoint is '
            'incomplete, download it again'
        ) from error
    except (IndexError, ValueError, TypeError, StrictDataclassError) as error:
        raise CheckpointError(
            f'config.json and the weights describe no language model ({error_summary(error)}): '
            'one of them is damaged, or of another model'
        ) from error
    if config.get('mm_vision_select_feature', 'patch') != 'patch':
        raise CheckpointError(
            f'mm_vision_select_feature is {config["mm_vision_select_feature"]!r} in config.json; '
            'expected "patch", as in all released LISA models'
        )
    return LisaConfig(
        clip=clip,
        llama=llama,
        sam=sam,
        seg_token_id=seg_token_id,
        mm_vision_select_layer=config.get('mm_vision_select_layer', -2),
        out_dim=out_dim,
        template=template,
    )


def _llama_config(shapes: Shapes, config: Mapping) -> LlamaConfig:
    """Return the language model's config; sizes from the shapes, the rest from config.json."""
    vocabulary, width = shapes['model.embed_tokens.weight']
    pad, heads = config.get('pad_token_id'), config['num_attention_heads']
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(
            f'num_attention_heads is {heads!r} in config.json; expected a number that divides '
            f"the language model's width, {width}"
        )
    scaling = dict(config.get('rope_scaling') or {})
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shapes['model.layers.0.mlp.gate_proj.weight'][0],
        num_hidden_layers=_count(shapes, r'model\.layers\.(\d+)\.'),
        num_attention_heads=heads,
        num_key_value_heads=config.get('num_key_value_heads') or heads,
        head_dim=config.get('head_dim') or width // heads,
        hidden_act=config.get('hidden_act', 'silu'),
        max_position_embeddings=config.get('max_position_embeddings', 2048),
        rms_norm_eps=config['rms_norm_eps'],
        rope_parameters={
            'rope_theta': config.get('rope_theta', 10000.0),
            'rope_type': scaling.pop('type', scaling.pop('rope_type', 'default')),
            **scaling,
        },
        attention_bias='model.layers.0.self_attn.q_proj.bias' in shapes,
        tie_word_embeddings=bool(config.get('tie_word_embeddings')),
        pad_token_id=pad if pad is not None and 0 <= pad < vocabulary else None,
        bos_token_id=config.get('bos_token_id', 1),
        eos_token_id=config.get('eos_token_id', 2),
    )


def clip_config(config_dict: dict, tower: Path) -> CLIPVisionConfig:
    """Return the config of a vision tower.

    Args:
        config_dict: config.json of a whole CLIP or of its vision half.
        tower: its folder, for messages.

    Raises:
        CheckpointError: it is not the config of a CLIP.
    """
    vision_half = config_dict.get('vision_config')
    values = vision_half if isinstance(vision_half, dict) and vision_half else config_dict
    if 'patch_size' not in values and 'clip' not in str(values.get('model_type')):
        raise CheckpointError(
            f'{tower} is not a CLIP: model_type is {values.get("model_type", "missing")} in its '
            'config.json'
        )
    try:
        return CLIPVisionConfig(**{key: values[key] for key in _CLIP_FIELDS if key in values})
    except (TypeError, ValueError, ArithmeticError, StrictDataclassError) as error:
        raise CheckpointError(
            f'{tower}: config.json is not that of a CLIP ({error_summary(error)})'
        ) from error
