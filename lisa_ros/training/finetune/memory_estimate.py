# SPDX-License-Identifier: Apache-2.0
"""Estimates the memory of a fine-tuning step from the sizes of the model, without its weights.

Weights are counted on a LISA model on torch's meta device, which has no storage. Activations are
computed with the formulas below. Bytes for each weight:

    frozen in nf4          4.127 / 8: 4 bits, a scale of one byte for 64 weights, and 4 bytes for
                           256 of these scales (bitsandbytes' double quantization)
    frozen                 2 in bf16, 4 in fp32
    trained                16: weight 4, gradient 4, AdamW's two moments 8, all in fp32

LISA-7B with the layers of its language model in nf4 (`docs/finetuning.md` has the output of
`format_table`):

    language model's layers     6.476e9 x 4.127 / 8                        3.34 GB
    CLIP-L and SAM's ViT-H      0.94e9 x 2                                 1.88 GB
    embed_tokens and lm_head    2 x 32004 x 4096 x 16                      4.19 GB
    text_hidden_fcs             17.8e6 x 16                                0.29 GB
    mask decoder and LoRA       (4.06e6 + 4.19e6) x 16                     0.13 GB

These are 9.8 GB. With the reserve and the gradient of a micro-batch, a 24 GB GPU has about 12 GB
left for activations, although the embeddings, their gradients and their moments are fp32.
Therefore neither 8-bit AdamW nor bfloat16 master weights are needed.

Activations are counted as autograd saves them under bf16 autocast. There the residual stream stays
in fp32. The estimates tend to be too high.

Letters: D is the width of the language model, I that of its MLP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from lisa_ros.model import quantization
from lisa_ros.model.lisa import LISA
from lisa_ros.model.lisa_config import LisaConfig
from lisa_ros.training.finetune.config import FULLY_TRAINED, LORA_TARGETS

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
RESERVE = 1.0e9  # CUDA context, workspaces of CUDA libraries, gaps of the allocator [bytes]
_LORA_WEIGHT = re.compile(rf'llm\.{LORA_TARGETS}\.weight')
_TEMPLATE_TOKENS = 64  # text around the queries of an image


@dataclass(frozen=True)
class StepShape:
    """The options that determine the memory of a step, besides the model."""

    precision: str = 'nf4'  # of frozen weights
    rank: int = 8  # of LoRA
    batch_size: int = 1  # images in a micro-batch
    queries_per_image: int = 3
    text_tokens: int = 80  # of a query with its answer
    image_size: tuple[int, int] = (1080, 1920)  # (height, width) [px]
    bf16: bool = True  # matrix products in bfloat16

    @property
    def query_count(self) -> int:
        """Queries in a micro-batch."""
        return self.batch_size * self.queries_per_image


@dataclass(frozen=True)
class Estimate:
    """Memory of a step by purpose [bytes], on the GPU or, without one, in RAM."""

    frozen: dict[str, float]  # frozen weights, by dtype
    trained: dict[str, float]  # trained weights, by part; 4 bytes each
    gradients: float
    optimizer: float
    activations: float  # if the language model's layers are recomputed in the backward pass
    activations_kept: float  # if the activations of all layers are kept

    def total(self, recompute: bool = True) -> float:
        """Return the peak memory of a step, including the reserve [bytes]."""
        activations = self.activations if recompute else self.activations_kept
        weights = sum(self.frozen.values()) + sum(self.trained.values())
        return weights + self.gradients + self.optimizer + activations + RESERVE


def estimate_memory(config: LisaConfig, shape: StepShape) -> Estimate:
    """Return the memory of a fine-tuning step of a model with this config."""
    frozen, trained = _weights(config, shape)
    trained_size = sum(trained.values())
    kept, recomputed = llm_activations(config, shape)
    # while the gradient of a micro-batch is added to the sum so far, both exist: for the largest
    # tensor this takes memory in fp32 and in the dtype of matrix products
    extra_gradient = max(trained.values()) * 1.5
    rest = lm_head_activations(config, shape) + mask_activations(config, shape) + extra_gradient
    # SAM's encoder has released its activations when the language model starts
    sam = sam_activations(config, shape)
    return Estimate(
        frozen=frozen,
        trained=trained,
        gradients=trained_size,
        optimizer=2 * trained_size,
        activations=max(sam, recomputed + rest),
        activations_kept=max(sam, kept + rest),
    )


def _weights(config: LisaConfig, shape: StepShape) -> tuple[dict[str, float], dict[str, float]]:
    """Return bytes of frozen weights by dtype and of trained weights by part."""
    with torch.device('meta'):
        lisa = LISA(config)
    frozen: dict[str, float] = {}
    trained: dict[str, float] = {}

    def add(sizes: dict[str, float], key: str, size: float) -> None:
        sizes[key] = sizes.get(key, 0.0) + size

    for name, weight in lisa.named_parameters():
        module = lisa.get_submodule(name.rpartition('.')[0])
        part = next((part for part in FULLY_TRAINED if name.startswith(part)), None)
        if part:
            add(trained, part.rstrip('.').rpartition('.')[2], 4 * weight.numel())
        elif shape.precision == 'nf4' and quantization.is_quantized(name, module):
            add(frozen, 'nf4', weight.numel() * NF4_BITS / 8)
        else:
            dtype = quantization.storage_dtype(name, shape.precision)
            add(frozen, str(dtype).removeprefix('torch.'), weight.numel() * dtype.itemsize)
        if _LORA_WEIGHT.fullmatch(name):
            add(trained, 'LoRA', 4 * shape.rank * sum(weight.shape))
    return frozen, trained


def llm_activations(config: LisaConfig, shape: StepShape) -> tuple[float, float]:
    """Return the activations of the language model: all kept, and recomputed [bytes]."""
    llama = config.llama
    text = _TEMPLATE_TOKENS + shape.queries_per_image * shape.text_tokens
    positions = shape.batch_size * (config.image_tokens + text)
    layer = _layer_activations(llama.hidden_size, llama.intermediate_size, shape) * positions
    layer_input = 4 * llama.hidden_size * positions  # kept for each layer
    # one weight of the MLP, dequantized for its matrix product
    dequantized = 2 * llama.hidden_size * llama.intermediate_size
    layers = llama.num_hidden_layers
    # the gradients of activations take as much, for one layer at a time
    kept = layer * (layers + 1) + dequantized
    recomputed = layer_input * (layers + 1) + 2 * layer + dequantized
    return kept, recomputed


def _layer_activations(width: int, mlp_width: int, shape: StepShape) -> float:
    """Return the activations that autograd keeps of a layer for one position [bytes].

        6 D, fp32       input, normalized copy and output of the two norms
        9 D, products   input of the attention; twice more after LoRA's dropout; queries and keys
                        before and after the rotary embedding; values; output
        2 D, one byte   dropout masks of LoRA
        4 I, products   gate, activated gate and up projection of the MLP, and their product

    "products" is the dtype of matrix products. For four layers with D = 512 autograd was measured
    to keep 1 / 1.4 of this sum, in bf16 and in fp32.
    """
    itemsize = 2 if shape.bf16 else 4
    return 4 * 6 * width + itemsize * (9 * width + 4 * mlp_width) + 2 * width


def lm_head_activations(config: LisaConfig, shape: StepShape) -> float:
    """Return the memory of the token logits and of their loss [bytes].

    It is that of a copy of lm_head in the dtype of matrix products and, at the positions of the
    answers, of the logits in that dtype and in fp32, their softmax and their gradient.
    """
    llama = config.llama
    positions = shape.query_count * shape.text_tokens  # an upper bound: questions have no logits
    copy = 2 * llama.vocab_size * llama.hidden_size if shape.bf16 else 0
    return copy + positions * llama.vocab_size * (2 + 4 + 4 + 4)


def mask_activations(config: LisaConfig, shape: StepShape) -> float:
    """Return the activations of the mask decoder and of the mask losses [bytes].

    For each mask, with C channels on SAM's grid, they are

        about 40 maps of C channels in the layers of the decoder
        6 maps of C / 4 channels at twice the grid, 6 of C / 8 channels at four times the grid
        2 maps of logits in SAM's square
        10 maps of the size of the image: logits, ground truth, sigmoid, products and gradients of
        both losses
    """
    side = config.sam_size // config.sam.vision_config.patch_size
    cells, channels = side * side, config.out_dim
    decoder = 4 * cells * (40 * channels + 6 * 4 * channels // 4 + 6 * 16 * channels // 8)
    height, width = shape.image_size
    pixels = 4 * (2 * config.sam_size**2 + 10 * height * width)
    return shape.query_count * (decoder + pixels)


def sam_activations(config: LisaConfig, shape: StepShape) -> float:
    """Return the peak memory of SAM's encoder, which runs without a backward pass [bytes].

    Its global attention with relative positions has three matrices of cells x cells per head.
    """
    vision = config.sam.vision_config
    side = config.sam_size // vision.patch_size
    itemsize = 2 if shape.precision != 'fp32' or shape.bf16 else 4
    attention = 3 * vision.num_attention_heads * side**4 * itemsize
    return shape.batch_size * (attention + 12 * side**2 * vision.mlp_dim * itemsize)


def format_table(config: LisaConfig, shape: StepShape) -> str:
    """Return the estimate as a Markdown table, in GB (1e9 bytes)."""
    memory = estimate_memory(config, shape)
    rows = [
        *((f'frozen weights, {dtype}', size) for dtype, size in memory.frozen.items()),
        *((f'trained weights, {part}', size) for part, size in memory.trained.items()),
        ('gradients', memory.gradients),
        ('AdamW moments', memory.optimizer),
        ('activations, layers recomputed', memory.activations),
        ('reserve', RESERVE),
        ('**total**', memory.total()),
        ('total without recomputing', memory.total(recompute=False)),
    ]
    lines = ['| memory | GB |', '| --- | --- |']
    return '\n'.join([*lines, *(f'| {name} | {size / 1e9:.3f} |' for name, size in rows)])
