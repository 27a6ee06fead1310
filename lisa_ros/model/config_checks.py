# SPDX-License-Identifier: Apache-2.0
"""Compare what a LisaConfig claims with the weights that are present, before a model is built.

A config.json is a claim: a layer count of 10^9 makes a library build modules until the memory is
full, also without weights. Counts are compared with the names of the weights; sizes without any
weight that shows them have a limit (limits.py). `check_keys` compares all other sizes by shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from transformers import CLIPVisionConfig
from transformers.models.sam.configuration_sam import SamConfig

from lisa_ros.error_text import short_repr
from lisa_ros.errors import CheckpointError
from lisa_ros.model.image_processing import ClipPreprocessing
from lisa_ros.model.limits import Limits
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.model.model_folder import listed
from lisa_ros.model.weight_files import Shapes

_MAX_POSITIONS = 2**20  # of the language model; keys and values of more fill the memory
_MAX_PREPROCESSING = 4  # of the preprocessing's size, as a multiple of CLIP's input


def check_claims(config: LisaConfig, shapes: Shapes, limits: Limits, folder: Path) -> None:
    """Check counts and sizes of a config.

    Args:
        config: of the model that is to be built.
        shapes: of all weights, under the names of `LISA.state_dict()`.
        limits: for sizes that no weight shows.
        folder: of the config.json, for messages.

    Raises:
        CheckpointError: a count differs from the weights, or a size is impossible or above its
            limit; the message names it and what was expected.
    """
    problems = chain(  # a later one may compute with what an earlier one has checked
        _wrong_counts(config, shapes),
        _wrong_patches(config),
        _too_large(config, limits),
        _wrong_llama(config),
        _wrong_sam(config.sam),
        _wrong_epsilons(config),
        _wrong_projector(config, shapes),
    )
    try:
        problem = next(problems, None)
    except CheckpointError as error:  # of count_layers, which knows no file
        raise CheckpointError(f'{folder}: {error}') from error
    if problem is not None:
        raise CheckpointError(f'{folder}/config.json: {problem}')


def projector_type(shapes: Shapes, prefix: str) -> str:
    """Return the projector that weights are of, as `LisaConfig.mm_projector_type` names it.

    Args:
        shapes: of all weights.
        prefix: of the projector's: "model.mm_projector." in released files.

    Raises:
        CheckpointError: it has no weights, those of two projectors, or of an unknown one. It would
            stay random: the original loads such files without a word.
    """
    names = sorted(key.removeprefix(prefix) for key in shapes if key.startswith(prefix))
    if not names:
        raise CheckpointError(
            f'there are no weights {prefix}*, of the projector between CLIP and the language '
            'model: the weights are incomplete, download them again'
        )
    steps = {name.partition('.')[0][:20] for name in names}  # names may be long
    is_linear, steps = bool(steps & {'weight', 'bias'}), steps - {'weight', 'bias'}
    if is_linear and steps:
        raise CheckpointError(
            f'the weights have two projectors, {prefix}weight and {prefix}{min(steps)}.*: '
            'remove the one that the model was not trained with'
        )
    if is_linear:
        return 'linear'
    if steps != {str(2 * number) for number in range(len(steps))}:
        raise CheckpointError(
            f'the projector has the weights {prefix}{{{listed(sorted(steps))}}}.*; expected 0, 2, '
            '4 and so on: linear layers with a GELU between two'
        )
    return f'mlp{len(steps)}x_gelu'


def _wrong_projector(config: LisaConfig, shapes: Shapes) -> Iterator[str]:
    """Yield a projector that differs from the weights."""
    present = projector_type(shapes, 'mm_projector.')
    if config.mm_projector_type != present:
        yield (
            f'mm_projector_type is {short_repr(config.mm_projector_type)}; expected {present}, '
            'as the weights are'
        )


def check_preprocessing(
    preprocessing: ClipPreprocessing, clip: CLIPVisionConfig, folder: Path
) -> None:
    """Check that the preprocessing does not enlarge images far beyond CLIP's input.

    Raises:
        CheckpointError: it does.
    """
    sides = (preprocessing.size, *(preprocessing.crop or ()))
    largest = max(max(side) if isinstance(side, tuple) else side for side in sides)
    if largest > _MAX_PREPROCESSING * clip.image_size:
        raise CheckpointError(
            f'{folder}/preprocessor_config.json: makes images of {largest} pixels; expected about '
            f'{clip.image_size}, the input of its CLIP'
        )


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Return the number of layers with weights named `prefix`N.*.

    Raises:
        CheckpointError: their numbers are not 0, 1, 2, ...
    """
    pattern = re.compile(re.escape(prefix) + r'([^.]*)\.')
    numbers = {match[1] for key in shapes if (match := pattern.match(key))}
    gap = next((str(n) for n in range(len(numbers)) if str(n) not in numbers), None)
    if gap is not None:
        highest = max(numbers - set(map(str, range(len(numbers)))), key=len)
        raise CheckpointError(
            f'there are weights {prefix}{highest:.20}.*, but none of {prefix}{gap}.*; expected '
            f'{len(numbers)} layers, numbered from 0: the weights are incomplete'
        )
    return len(numbers)


def _wrong_patches(config: LisaConfig) -> Iterator[str]:
    """Yield patches that do not fit into the images that CLIP and SAM get."""
    clip, sam = config.clip, config.sam.vision_config
    if clip.patch_size > clip.image_size:
        yield f'clip.patch_size is {clip.patch_size}; expected 1 to {clip.image_size}'
    if sam.image_size % sam.patch_size:
        yield (
            f'sam.vision_config.image_size is {sam.image_size}; expected a multiple of '
            f'patch_size, {sam.patch_size}'
        )


def _wrong_counts(config: LisaConfig, shapes: Shapes) -> Iterator[str]:
    """Yield the counts of modules that differ from the weights."""
    decoder = config.sam.mask_decoder_config
    claims = {
        'clip.encoder.layers.': ('clip.num_hidden_layers', config.clip.num_hidden_layers),
        'llm.model.layers.': ('llama.num_hidden_layers', config.llama.num_hidden_layers),
        'sam.vision_encoder.layers.': (
            'sam.vision_config.num_hidden_layers',
            config.sam.vision_config.num_hidden_layers,
        ),
        'sam.mask_decoder.transformer.layers.': (
            'sam.mask_decoder_config.num_hidden_layers',
            decoder.num_hidden_layers,
        ),
        'sam.mask_decoder.iou_prediction_head.layers.': (
            'sam.mask_decoder_config.iou_head_depth',
            decoder.iou_head_depth - 2,
        ),
        'sam.mask_decoder.output_hypernetworks_mlps.': (
            'sam.mask_decoder_config.num_multimask_outputs',
            decoder.num_multimask_outputs + 1,
        ),
        'sam.prompt_encoder.point_embed.': (
            'sam.prompt_encoder_config.num_point_embeddings',
            config.sam.prompt_encoder_config.num_point_embeddings,
        ),
    }
    for prefix, (field, claimed) in claims.items():
        present = count_layers(shapes, prefix)
        if claimed != present:
            yield f'{field} claims {claimed} modules, the weights have {present} ({prefix}*)'


def _wrong_llama(config: LisaConfig) -> Iterator[str]:
    """Yield sizes that fit the weights but make the language model fail at the first image."""
    llama, clip = config.llama, config.clip
    heads, key_value_heads = llama.num_attention_heads, llama.num_key_value_heads
    layers, select_layer = clip.num_hidden_layers, config.mm_vision_select_layer
    if key_value_heads < 1 or heads % key_value_heads:
        yield (
            f'num_key_value_heads is {key_value_heads}; expected a divisor of '
            f'num_attention_heads, {heads}'
        )
    if llama.head_dim < 2 or llama.head_dim % 2:
        yield f'head_dim is {llama.head_dim}; expected an even number, for rotary positions'
    if type(select_layer) is not int or not -layers - 1 <= select_layer <= layers:
        yield (
            f'mm_vision_select_layer is {select_layer!r}; this CLIP has {layers} layers: '
            f'expected {-layers - 1} to {layers}'
        )
    if not config.image_tokens < llama.max_position_embeddings <= _MAX_POSITIONS:
        yield (
            f'max_position_embeddings is {llama.max_position_embeddings}; expected more than the '
            f'{config.image_tokens} tokens of an image and at most {_MAX_POSITIONS}'
        )


def _wrong_sam(sam: SamConfig) -> Iterator[str]:
    """Yield sizes of SAM's parts that do not fit each other."""
    vision, prompt, decoder = sam.vision_config, sam.prompt_encoder_config, sam.mask_decoder_config
    pairs = {
        'sam.prompt_encoder_config.image_size': (prompt.image_size, vision.image_size),
        'sam.prompt_encoder_config.patch_size': (prompt.patch_size, vision.patch_size),
        'sam.prompt_encoder_config.hidden_size': (prompt.hidden_size, vision.output_channels),
        'sam.mask_decoder_config.hidden_size': (decoder.hidden_size, vision.output_channels),
        'sam.vision_config.num_channels': (vision.num_channels, 3),
    }
    for field, (value, expected) in pairs.items():
        if value != expected:
            yield f'{field} is {value}; expected {expected}'


def _too_large(config: LisaConfig, limits: Limits) -> Iterator[str]:
    """Yield inputs above the limits: their size is no weight's, or that of a small table."""
    clip, sam = config.clip, config.sam.vision_config
    for field, side in (('clip', clip.image_size), ('sam.vision_config', sam.image_size)):
        if side > limits.input_side:
            yield (
                f'{field}.image_size is {side}; expected at most {limits.input_side} pixels; if '
                'you trust this model, set max_input_side'
            )
            return
    if clip.num_channels != 3:
        yield f'clip.num_channels is {clip.num_channels}; expected 3'
    parts = {
        'clip': (clip.num_attention_heads, config.image_tokens),
        'sam.vision_config': (
            sam.num_attention_heads,
            max(sam.image_size // sam.patch_size, sam.window_size) ** 2,
        ),
    }
    for field, (heads, tokens) in parts.items():
        if heads * tokens**2 > limits.attention:
            yield (
                f'{field} has {heads} heads over {tokens} patches, which takes '
                f'{4e-9 * heads * tokens**2:.0f} GB for a layer; if you trust this model, set '
                'max_input_side'
            )


def _wrong_epsilons(config: LisaConfig) -> Iterator[str]:
    """Yield the small numbers in norms that would make all features NaN."""
    numbers = {
        'rms_norm_eps': config.llama.rms_norm_eps,
        'clip.layer_norm_eps': config.clip.layer_norm_eps,
        'sam.vision_config.layer_norm_eps': config.sam.vision_config.layer_norm_eps,
    }
    for field, value in numbers.items():
        if not 0 <= value < math.inf:
            yield f'{field} is {value}; expected 0 or more'
