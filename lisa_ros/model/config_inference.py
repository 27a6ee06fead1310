# SPDX-License-Identifier: Apache-2.0
"""Infers all sizes of a LISA from the shapes of its weights and its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.error_text import error_summary
from lisa_ros.errors import CheckpointError
from lisa_ros.model.config_checks import count_layers, projector_type
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.key_mapping import LISA_SAM_PREFIX, PROJECTOR_PREFIX
from lisa_ros.model.lisa_config import LisaConfig, check_sizes, make_config, sam_config
from lisa_ros.model.weight_files import Shapes

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
        depth = count_layers(shapes, 'image_encoder.blocks.')
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
            decoder_depth=count_layers(shapes, f'{decoder}.'),
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


def infer_config(
    shapes: Shapes,
    config: Mapping,
    clip: CLIPVisionConfig,
    seg_token_id: int,
    template: str,
    source: str | Path = 'config.json',
) -> LisaConfig:
    """Return the LisaConfig of a released checkpoint.

    Args:
        shapes: of all weights, under the released names.
        config: content of the folder's config.json.
        clip: config of the vision tower.
        seg_token_id: from the tokenizer.
        template: the conversation template.
        source: path of the config.json, for messages.

    Raises:
        CheckpointError: the config lacks a field, has an impossible value, or claims more than
            the weights have; or a weight that shows a size is missing or has another rank.
    """
    fields = JsonFields(config, source)
    sam = infer_sam(
        {
            key.removeprefix(LISA_SAM_PREFIX): shape
            for key, shape in shapes.items()
            if key.startswith(LISA_SAM_PREFIX)
        }
    )
    try:
        llama = _llama_config(shapes, fields)
        out_dim = shapes['model.text_hidden_fcs.0.2.weight'][0]
    except KeyError as error:
        raise CheckpointError(
            f'neither config.json nor the weights have {error.args[0]!r}: the checkpoint is '
            'incomplete, download it again'
        ) from error
    except (IndexError, ValueError, TypeError) as error:
        raise CheckpointError(
            f'config.json and the weights describe no language model ({error_summary(error)}): '
            'one of them is damaged, or of another model'
        ) from error
    if fields.text('mm_vision_select_feature', 'patch') != 'patch':
        raise fields.error('mm_vision_select_feature', '"patch", as in all released LISA models')
    return LisaConfig(
        clip=clip,
        llama=llama,
        sam=sam,
        seg_token_id=seg_token_id,
        mm_vision_select_layer=(
            fields.integer('mm_vision_select_layer') if 'mm_vision_select_layer' in config else -2
        ),
        mm_projector_type=_projector_type(shapes, fields),
        out_dim=out_dim,
        template=template,
    )


def _projector_type(shapes: Shapes, config: JsonFields) -> str:
    """Return the projector of the weights; config.json may name it, too.

    Raises:
        CheckpointError: the weights are of none, and see `projector_type`; or of another one.
    """
    try:
        present = projector_type(shapes, PROJECTOR_PREFIX)
    except CheckpointError as error:
        raise CheckpointError(f'{Path(config.path).parent}: {error}') from error
    claimed = config.text('mm_projector_type', None)
    if claimed not in (None, present):
        raise config.error(
            'mm_projector_type',
            f'"{present}", as the weights have ({PROJECTOR_PREFIX}*): files of two checkpoints '
            'are mixed, or weights are missing',
        )
    return present


def _llama_config(shapes: Shapes, config: JsonFields) -> LlamaConfig:
    """Return the language model's config; sizes from the shapes, the rest from config.json."""
    sizes = _llama_sizes(shapes)
    for key, present in sizes.items():
        if config.integer(key, 0, minimum=0) > present:
            raise config.error(key, f'at most {present}, as the weights have')
    vocabulary, width = sizes['vocab_size'], sizes['hidden_size']
    pad, heads = config.integer('pad_token_id', None), config.integer('num_attention_heads')
    if heads < 1 or width % heads:
        raise config.error(
            'num_attention_heads', f"a number that divides the language model's width, {width}"
        )
    values = {
        **sizes,
        'num_attention_heads': heads,
        'num_key_value_heads': config.integer('num_key_value_heads', 0) or heads,
        'head_dim': config.integer('head_dim', 0) or width // heads,
        'hidden_act': config.text('hidden_act', 'silu'),
        'max_position_embeddings': config.integer('max_position_embeddings', 2048, minimum=1),
        'rms_norm_eps': config.number('rms_norm_eps', minimum=0),
        'rope_parameters': _rope_parameters(config),
        'attention_bias': 'model.layers.0.self_attn.q_proj.bias' in shapes,
        'tie_word_embeddings': config.flag('tie_word_embeddings', False),
        'pad_token_id': pad if pad is not None and 0 <= pad < vocabulary else None,
        'bos_token_id': config.integer('bos_token_id', 1),
        'eos_token_id': config.integer('eos_token_id', 2),
    }
    return make_config(LlamaConfig, values, config)


def _llama_sizes(shapes: Shapes) -> dict[str, int]:
    """Return the language model's sizes, from its weights, by the keys of config.json."""
    vocabulary, width = shapes['model.embed_tokens.weight']
    return {
        'vocab_size': vocabulary,
        'hidden_size': width,
        'intermediate_size': shapes['model.layers.0.mlp.gate_proj.weight'][0],
        'num_hidden_layers': count_layers(shapes, 'model.layers.'),
    }


def _rope_parameters(config: JsonFields) -> dict:
    """Return the language model's rotary positions in the terms of transformers."""
    scaling = config.object('rope_scaling', {})
    rope_type = scaling.text('type', None) or scaling.text('rope_type', 'default')
    rest = {key: v for key, v in scaling.values.items() if key not in ('type', 'rope_type')}
    theta = config.number('rope_theta', 10000.0)
    return {'rope_theta': theta, 'rope_type': rope_type, **rest}


def clip_config(config: JsonFields) -> CLIPVisionConfig:
    """Return the config of a vision tower.

    Args:
        config: config.json of a whole CLIP or of its vision half.

    Raises:
        CheckpointError: it is not the config of a CLIP.
    """
    values = config.object('vision_config', {})
    if not values.values:
        values = config
    model_type = values.text('model_type', '')
    if 'patch_size' not in values.values and 'clip' not in model_type:
        raise CheckpointError(
            f'{Path(config.path).parent} is not a CLIP: model_type is {model_type or "missing"} '
            'in its config.json'
        )
    check_sizes(values)
    return make_config(
        CLIPVisionConfig,
        {key: values.values[key] for key in _CLIP_FIELDS if key in values.values},
        config,
    )
