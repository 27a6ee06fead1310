# SPDX-License-Identifier: Apache-2.0
"""The original SAM of segment-anything at toy sizes with random weights, as a reference."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn


def _modeling() -> types.ModuleType:
    """Import only segment_anything.modeling: the package itself needs torchvision."""
    name = 'segment_anything'
    if name not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError('the tests need segment-anything: pip install -e .[test]')
        package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = package
    return importlib.import_module(name + '.modeling')


@dataclass(frozen=True)
class Size:
    image: int = 128
    width: int = 32
    depth: int = 3
    heads: int = 2
    global_layers: tuple[int, ...] = (1,)
    window: int = 3
    patch: int = 16
    prompt: int = 32
    decoder_mlp: int = 64
    mlp_ratio: float = 4.0


SIZES = {
    'windows that do not divide the grid': Size(),
    'a window larger than the grid': Size(image=64, window=14),
    'only global layers': Size(depth=2, global_layers=(0, 1), heads=4),
    'no global layer': Size(depth=2, global_layers=(), window=4),
    'a window that is the grid': Size(image=112, window=7),
    'as ViT-H in small': Size(
        image=256, width=80, depth=4, heads=5, global_layers=(0, 3), window=14, prompt=64
    ),
    'other patch and ratio': Size(patch=8, image=64, mlp_ratio=2.0, prompt=48),
}


def build(size: Size, seed: int = 0) -> nn.Module:
    """Return the original SAM with random weights, position tables included."""
    modeling = _modeling()
    torch.manual_seed(seed)
    grid = size.image // size.patch
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=size.image,
            patch_size=size.patch,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=size.mlp_ratio,
            out_chans=size.prompt,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=size.window,
            global_attn_indexes=size.global_layers,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=size.prompt,
            image_embedding_size=(grid, grid),
            input_image_size=(size.image, size.image),
            mask_in_chans=16,
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=size.prompt,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=size.prompt, num_heads=8, mlp_dim=size.decoder_mlp
            ),
        ),
    )
    with torch.no_grad():
        for weight in sam.parameters():
            if weight.abs().max() == 0 or weight.dim() == 1:  # tables, biases, norms
                weight.add_(torch.randn_like(weight) * 0.2)
    return sam.eval()


def masks(sam: nn.Module, pixels: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return image embeddings, low-resolution logits and IoU for LISA's prompts (N, C)."""
    with torch.no_grad():
        grid = sam.image_encoder(pixels)
        _, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
        low_res, iou = sam.mask_decoder(
            image_embeddings=grid,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=prompts[:, None],
            dense_prompt_embeddings=dense.expand(len(prompts), -1, -1, -1),
            multimask_output=False,
        )
    return grid, low_res[:, 0], iou[:, 0]
