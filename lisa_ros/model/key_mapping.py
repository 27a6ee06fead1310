# SPDX-License-Identifier: Apache-2.0
"""Maps between the weight names of `LISA.state_dict()` and those of other layouts.

The other layouts are segment-anything's files, CLIP's folders, and the released layout of
dvlab-research/LISA.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

LISA_SAM_PREFIX = 'model.visual_model.'  # of SAM's weights in the released layout
PROJECTOR_PREFIX = 'model.mm_projector.'  # of the layers between CLIP and the language model

_SAM_NAMES = [  # used in both directions: no right side may be part of another right side
    # vision encoder
    ('image_encoder.blocks.', 'vision_encoder.layers.'),
    ('image_encoder.', 'vision_encoder.'),
    ('.patch_embed.proj.', '.patch_embed.projection.'),
    ('.neck.0.', '.neck.conv1.'),
    ('.neck.1.', '.neck.layer_norm1.'),
    ('.neck.2.', '.neck.conv2.'),
    ('.neck.3.', '.neck.layer_norm2.'),
    # prompt encoder
    ('.pe_layer.positional_encoding_gaussian_matrix', '.shared_embedding.positional_embedding'),
    ('.point_embeddings.', '.point_embed.'),
    ('.mask_downscaling.0.', '.mask_embed.conv1.'),
    ('.mask_downscaling.1.', '.mask_embed.layer_norm1.'),
    ('.mask_downscaling.3.', '.mask_embed.conv2.'),
    ('.mask_downscaling.4.', '.mask_embed.layer_norm2.'),
    ('.mask_downscaling.6.', '.mask_embed.conv3.'),
    # mask decoder
    ('.norm_final_attn.', '.layer_norm_final_attn.'),
    *((f'.norm{number}.', f'.layer_norm{number}.') for number in range(1, 5)),
    ('.output_upscaling.0.', '.upscale_conv1.'),
    ('.output_upscaling.1.', '.upscale_layer_norm.'),
    ('.output_upscaling.3.', '.upscale_conv2.'),
]
# The mask decoder's heads: MLPs of three layers in every SAM (build_sam.py, mask_decoder.py).
_SAM_HEAD = r'^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.'
_SAM_HEAD_LAYERS = {'layers.0.': 'proj_in.', 'layers.1.': 'layers.0.', 'layers.2.': 'proj_out.'}
_LISA_NAMES = [
    (r'^model\.text_hidden_fcs\.(0\.|$)', 'text_hidden_fcs.'),
    (r'^model\.mm_projector\.', 'mm_projector.'),
    (r'^model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?', 'clip.'),
    (r'^model\.(embed_tokens|layers|norm)\.', r'llm.model.\1.'),
    (r'^lm_head\.', 'llm.lm_head.'),
]
_LISA_PREFIXES = {  # our prefix -> the released one; for CLIP that of its own folder
    'text_hidden_fcs.': 'model.text_hidden_fcs.0.',
    'mm_projector.': 'model.mm_projector.',
    'clip.': 'vision_model.',
    'llm.model.': 'model.',
    'llm.lm_head.': 'lm_head.',
}
# Version 0 of LISA has its own parts in two more files, without the first "model.".
V0_FILES = ('pytorch_model-visual_model.bin', 'pytorch_model-text_hidden_fcs.bin')
_V0_NAME = re.compile(r'^(?=visual_model\.|text_hidden_fcs\.)')
# Computed, not learned; files of old libraries contain them.
_COMPUTED = re.compile(r'rotary_emb\.inv_freq$|position_ids$|pixel_(mean|std)$')
# The text half of a CLIP, which LISA does not use.
_CLIP_TEXT = re.compile(r'^(text_model\.|text_projection|visual_projection|logit_scale)')


def map_sam_key(name: str) -> str | None:
    """Return transformers' name of a segment-anything weight; None if it is not learned."""
    if _COMPUTED.search(name):
        return None
    for old, new in _SAM_NAMES:
        name = name.replace(old, new)
    return _rename_head_layer(name, _SAM_HEAD_LAYERS)


def unmap_sam_key(name: str) -> str:
    """Return segment-anything's name of a weight; the inverse of `map_sam_key`."""
    for old, new in _SAM_NAMES:
        name = name.replace(new, old)
    return _rename_head_layer(name, {new: old for old, new in _SAM_HEAD_LAYERS.items()})


def _rename_head_layer(name: str, layers: Mapping[str, str]) -> str:
    """Return the name with its layer renamed, if it belongs to a head of the mask decoder."""
    head = re.match(_SAM_HEAD, name)
    if head:
        for old, new in layers.items():
            if name.startswith(old, head.end()):
                return head[0] + new + name[head.end() + len(old) :]
    return name


def map_key(name: str) -> str | None:
    """Return our name of a weight in the released layout; None if it is not learned.

    Names that the released layout does not have are returned unchanged, so that `check_keys`
    reports them as unexpected.
    """
    if _COMPUTED.search(name):
        return None
    if name.startswith(LISA_SAM_PREFIX):
        return 'sam.' + map_sam_key(name.removeprefix(LISA_SAM_PREFIX))
    for pattern, replacement in _LISA_NAMES:
        name, matches = re.subn(pattern, replacement, name)
        if matches:
            break
    return name


def map_key_without_clip(name: str) -> str | None:
    """Return our name of a weight in the released layout; None for CLIP's weights, too."""
    mapped = map_key(name)
    return None if mapped is None or mapped.startswith('clip.') else mapped


def map_sam_file_key(name: str, own_keys: Container[str] = ()) -> str | None:
    """Return LISA's name of a weight in a segment-anything file.

    Args:
        name: segment-anything's name.
        own_keys: released names of the weights that the LISA has itself; None is returned for
            these.
    """
    key = LISA_SAM_PREFIX + name
    return None if key in own_keys else map_key(key)


def unmap_key(name: str) -> str:
    """Return the released name of one of our weights, for messages about the user's files."""
    if name.startswith('sam.'):
        return LISA_SAM_PREFIX + unmap_sam_key(name.removeprefix('sam.'))
    for prefix, released_prefix in _LISA_PREFIXES.items():
        if name.startswith(prefix):
            return released_prefix + name.removeprefix(prefix)
    return name


def released_key(name: str) -> str:
    """Return the name in the released layout of a weight of version 0; others unchanged."""
    return _V0_NAME.sub('model.', name)


def map_clip_key(name: str) -> str | None:
    """Return our name of a weight in a CLIP folder; None for CLIP's text half and buffers."""
    if _COMPUTED.search(name) or _CLIP_TEXT.match(name):
        return None
    return 'clip.' + name.removeprefix('vision_model.')
