# SPDX-License-Identifier: Apache-2.0
"""How others name LISA's weights, and what we call them.

Others are segment-anything, CLIP's folders, and the released layout of dvlab-research/LISA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_SAM_NAMES = [  # read from left to right and back: no right side may stand within another one's
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
    (r'^model\.text_hidden_fcs\.0\.', 'text_hidden_fcs.'),
    (r'^model\.mm_projector\.', 'mm_projector.'),
    (r'^model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?', 'clip.'),
    (r'^model\.(embed_tokens|layers|norm)\.', r'llm.model.\1.'),
    (r'^lm_head\.', 'llm.lm_head.'),
]
_LISA_PREFIXES = {  # ours -> theirs; CLIP's as its own folder has them
    'text_hidden_fcs.': 'model.text_hidden_fcs.0.',
    'mm_projector.': 'model.mm_projector.',
    'clip.': 'vision_model.',
    'llm.model.': 'model.',
    'llm.lm_head.': 'lm_head.',
}
# Computed, not learnt; files of old libraries carry them along.
_COMPUTED = re.compile(r'rotary_emb\.inv_freq$|position_ids$|pixel_(mean|std)$')
# The words' half of a CLIP, which LISA has no use for.
_CLIP_WORDS = re.compile(r'^(text_model\.|text_projection|visual_projection|logit_scale)')


def map_sam_key(name: str) -> str | None:
    """Return transformers' name of a segment-anything weight; None if it is not learnt."""
    if _COMPUTED.search(name):
        return None
    for old, new in _SAM_NAMES:
        name = name.replace(old, new)
    return _renamed_head(name, _SAM_HEAD_LAYERS)


def unmap_sam_key(name: str) -> str:
    """Return segment-anything's name of a weight: `map_sam_key`'s inverse."""
    for old, new in _SAM_NAMES:
        name = name.replace(new, old)
    return _renamed_head(name, {new: old for old, new in _SAM_HEAD_LAYERS.items()})


def _renamed_head(name: str, layers: Mapping[str, str]) -> str:
    """Return the name with its layer renamed if it is in one of the mask decoder's heads."""
    head = re.match(_SAM_HEAD, name)
    if head:
        for old, new in layers.items():
            if name.startswith(old, head.end()):
                return head[0] + new + name[head.end() + len(old) :]
    return name


def map_key(name: str) -> str | None:
    """Return our name of a weight in the released layout; None if it is not learnt.

    Names that mean nothing in that layout come back as they are, and so turn up as unexpected.
    """
    if _COMPUTED.search(name):
        return None
    if name.startswith('model.visual_model.'):
        return 'sam.' + map_sam_key(name.removeprefix('model.visual_model.'))
    for old, new in _LISA_NAMES:
        name, found = re.subn(old, new, name)
        if found:
            break
    return name


def unmap_key(name: str) -> str:
    """Return the released name of one of our weights, for people to find it in their files."""
    if name.startswith('sam.'):
        return 'model.visual_model.' + unmap_sam_key(name.removeprefix('sam.'))
    for ours, theirs in _LISA_PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def map_clip_key(name: str) -> str | None:
    """Return our name of a weight in a CLIP folder; None for CLIP's words and what is computed."""
    if _COMPUTED.search(name) or _CLIP_WORDS.match(name):
        return None
    return 'clip.' + name.removeprefix('vision_model.')
