# SPDX-License-Identifier: Apache-2.0
"""A SAM 2 at toy size with random weights, and masks that the `sam2` package makes with them.

    python test/toy_sam2.py    # writes data/sam2/golden.npz with the sam2 package

The weights come from NumPy's generator, so that they need not be stored.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from golden import load_image
from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

GOLDEN = Path(__file__).parent / 'data' / 'sam2' / 'golden.npz'
SIDE, WIDTH, SPACING = 64, 32, 8  # input [px], hidden size, distance of stored logits [px]
BOX, POINT = (60.0, 40.0, 200.0, 150.0), (120.0, 90.0)
PROMPTS = {  # box and points on both images [px]
    'box and point': (BOX, (POINT,)),
    'box': (BOX, ()),
    'point': (None, (POINT,)),
    'box and two points': (BOX, (POINT, (150.5, 60.25))),
    'whole image': ((0.0, 0.0, 239.0, 179.0), ((1.0, 1.0),)),
    'corner': ((200.0, 150.0, 240.0, 180.0), ((239.0, 179.0),)),
}
IMAGES = {'chelsea': np.s_[:180, :240], 'coffee': np.s_[40:220, 30:270]}  # parts of 180 x 240 [px]


def toy_image(name):
    return np.ascontiguousarray(load_image(name)[IMAGES[name]])


def toy_config(side=SIDE, width=WIDTH):
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[4, 2, 4, 2],
        global_attention_blocks=[3],
        image_size=[side, side],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=width,
    )
    return Sam2Config(
        vision_config=vision,
        prompt_encoder_config={'hidden_size': width, 'image_size': side, 'patch_size': 16},
        mask_decoder_config={
            'hidden_size': width,
            'mlp_dim': 32,
            'num_attention_heads': 2,
            'iou_head_hidden_dim': 16,
        },
    )


def toy_model():
    """Return the model with random weights whose masks are neither empty nor all."""
    model, rng = Sam2Model(toy_config()), np.random.default_rng(24)
    state = {}
    for name, weight in sorted(model.state_dict().items()):
        values = rng.standard_normal(weight.shape)
        if 'norm' in name and name.endswith('weight'):
            values = 1 + 0.1 * values
        elif name.endswith('bias'):
            values *= 0.02
        elif 'embed' not in name and 'token' not in name:
            values *= 2 / np.sqrt(np.prod(weight.shape[1:]))
        state[name] = torch.tensor(values, dtype=torch.float32)
    shared = 'prompt_encoder.shared_embedding.positional_embedding'
    state['shared_image_embedding.positional_embedding'] = state[shared]
    model.load_state_dict(state)
    return model.eval()


# ---- with the sam2 package

_NAMES = [  # of transformers, and of the sam2 package
    (r'^no_memory_embedding', 'no_mem_embed'),
    (r'^vision_encoder\.backbone', 'image_encoder.trunk'),
    (r'^vision_encoder\.neck\.convs\.(\d)', r'image_encoder.neck.convs.\1.conv'),
    (r'patch_embed\.projection', 'patch_embed.proj'),
    (r'layer_norm(\d)', r'norm\1'),
    (r'layer_norm_final', 'norm_final'),
    (r'^prompt_encoder', 'sam_prompt_encoder'),
    (r'^mask_decoder', 'sam_mask_decoder'),
    (r'shared_embedding\.positional_embedding', 'pe_layer.positional_encoding_gaussian_matrix'),
    (r'mask_embed\.conv1', 'mask_downscaling.0'),
    (r'mask_embed\.norm1', 'mask_downscaling.1'),
    (r'mask_embed\.conv2', 'mask_downscaling.3'),
    (r'mask_embed\.norm2', 'mask_downscaling.4'),
    (r'mask_embed\.conv3', 'mask_downscaling.6'),
    (r'upscale_conv1', 'output_upscaling.0'),
    (r'upscale_layer_norm', 'output_upscaling.1'),
    (r'upscale_conv2', 'output_upscaling.3'),
    (r'o_proj', 'out_proj'),
    (r'((?:mlps\.\d|head)\.)layers\.0', r'\1layers.1'),
    (r'((?:mlps\.\d|head)\.)proj_in', r'\1layers.0'),
    (r'((?:mlps\.\d|head)\.)proj_out', r'\1layers.2'),
    (r'mlp\.proj_in', 'mlp.layers.0'),
    (r'mlp\.proj_out', 'mlp.layers.1'),
]


def original_state(model):
    """Return the weights under the names of the sam2 package."""
    state = {}
    for key, weight in model.state_dict().items():
        if key.startswith('shared_image_embedding'):
            continue
        name = key
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        if name == 'sam_prompt_encoder.point_embed.weight':
            for i, row in enumerate(weight):
                state[f'sam_prompt_encoder.point_embeddings.{i}.weight'] = row[None]
        else:
            state[name] = weight
    return state


def original_predictor():
    """Return a SAM2ImagePredictor of the sam2 package with the toy's weights."""
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.mask_decoder import MaskDecoder
    from sam2.modeling.sam.transformer import TwoWayTransformer
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    trunk = Hiera(
        embed_dim=8,
        num_heads=1,
        stages=(1, 1, 2, 1),
        global_att_blocks=(3,),
        window_pos_embed_bkg_spatial_size=(4, 4),
        window_spec=(4, 2, 4, 2),
    )
    neck = FpnNeck(
        PositionEmbeddingSine(WIDTH),
        WIDTH,
        [64, 32, 16, 8],
        fpn_interp_model='nearest',
        fpn_top_down_levels=[2, 3],
    )
    memory = torch.nn.Module()
    memory.d_model = WIDTH
    base = SAM2Base(
        ImageEncoder(trunk, neck, scalp=1),
        memory,
        torch.nn.Module(),
        image_size=SIDE,
        use_high_res_features_in_sam=True,
        directly_add_no_mem_embed=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
    )
    base.sam_mask_decoder = MaskDecoder(
        transformer_dim=WIDTH,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=2, mlp_dim=32),
        iou_head_hidden_dim=16,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
    )
    missing, unexpected = base.load_state_dict(original_state(toy_model()), strict=False)
    assert not unexpected
    assert set(missing) <= {'maskmem_tpos_enc', 'no_mem_pos_enc'}
    predictor = SAM2ImagePredictor(base.eval())
    predictor._bb_feat_sizes = [(SIDE // stride,) * 2 for stride in (4, 8, 16)]
    return predictor


def write_golden():
    """Write masks, logits and scores of all prompts on both images."""
    predictor, arrays = original_predictor(), {}
    for name in IMAGES:
        predictor.set_image(toy_image(name))
        for prompt, (box, points) in PROMPTS.items():
            logits, ious, _ = predictor.predict(
                point_coords=np.array(points) if points else None,
                point_labels=np.ones(len(points)) if points else None,
                box=None if box is None else np.array(box),
                return_logits=True,
            )
            best = int(ious.argmax())
            arrays[f'{name}/{prompt}/mask'] = np.packbits(logits[best] > 0)
            arrays[f'{name}/{prompt}/logits'] = logits[best][::SPACING, ::SPACING]
            arrays[f'{name}/{prompt}/iou'] = ious[best]
            print(name, prompt, (logits[best] > 0).mean(), ious)
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == '__main__':
    write_golden()
