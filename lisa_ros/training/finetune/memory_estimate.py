# SPDX-License-Identifier: Apache-2.0
"""How much memory a step of fine-tuning takes, worked out before any weight is loaded.

The weights are counted on a LISA without storage (torch's meta device); activations by the
formulas below. In bytes a weight:

    in four bits (nf4)     4.127 / 8: four bits, one byte of scale for 64 weights, and four bytes
                           for 256 of those (bitsandbytes' double quantisation)
    as it is               2 in bf16, 4 in fp32
    that learns            16: 4 of itself, 4 of gradient, 8 of AdamW's two moments, all in fp32

LISA-7B with its language model's layers in nf4 (sum in `docs/finetuning.md`, made by `table`):

    language model's layers     6.476e9 x 4.127 / 8                        3.34 GB
    CLIP-L and SAM's ViT-H      0.94e9 x 2                                 1.88 GB
    embed_tokens and lm_head    2 x 32004 x 4096 x 16                      4.19 GB
    text_hidden_fcs             17.8e6 x 16                                0.29 GB
    mask decoder and LoRA       (4.06e6 + 4.19e6) x 16                     0.13 GB

so that 24 GB leave about 12 GB to activations even with the words' weights, gradients and moments
all in fp32: no eight-bit AdamW and no bfloat16 master weights are needed.

Activations are counted as autograd keeps them under bf16 autocast, where the residual stream stays
in fp32; see `_layer`, `_masks` and `_sam`. They are meant to be high rather than low.

Letters: R rows (one for each picture: its queries share a row), L places of a row, D and I widths
of the language model and its MLPs, V words, N masks, S side of SAM's square.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lisa_ros.model import quantization
from lisa_ros.model.lisa import LISA, LisaConfig

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
RESERVE = 1.0e9  # CUDA's context, its libraries' workspaces and the allocator's gaps [bytes]
_WHOLE = ('llm.model.embed_tokens.', 'llm.lm_head.', 'text_hidden_fcs.', 'sam.mask_decoder.')
_LORA = ('self_attn.q_proj.weight', 'self_attn.v_proj.weight')


@dataclass(frozen=True)
class StepShape:
    """What a step is asked to do, as `finetune.Recipe` has it."""

    precision: str = 'nf4'
    rank: int = 8  # of LoRA
    batch_size: int = 1  # in a micro-batch
    queries_per_image: int = 3  # about each picture
    text_tokens: int = 80  # of a query with its answer [tokens]
    image_size: tuple[int, int] = (1080, 1920)  # height, width of a picture [px]
    bf16: bool = True  # matrix products


@dataclass(frozen=True)
class Estimate:
    """Bytes by what takes them, on the GPU (or in memory, without one)."""

    frozen: dict[str, float]  # weights that stay, by type
    trained: dict[str, float]  # weights that learn, by part: 4 bytes each
    gradients: float
    optimizer: float
    activations: float  # with the language model's layers recomputed in the backward pass
    activations_kept: float  # with all of them kept

    def total(self, recompute: bool = True) -> float:
        """Return the peak of a step [bytes], the reserve included."""
        activations = self.activations if recompute else self.activations_kept
        weights = sum(self.frozen.values()) + sum(self.trained.values())
        return weights + self.gradients + self.optimizer + activations + RESERVE


def estimate(config: LisaConfig, plan: StepShape) -> Estimate:
    """Return what a step of `plan` takes with a model of `config`'s sizes."""
    with torch.device('meta'):
        lisa = LISA(config)
    frozen: dict[str, float] = {}
    trained: dict[str, float] = {}
    for name, weight in lisa.named_parameters():
        module = lisa.get_submodule(name.rpartition('.')[0])
        whole = next((part for part in _WHOLE if name.startswith(part)), None)
        if whole:
            _add(trained, whole.rstrip('.').rpartition('.')[2], 4 * weight.numel())
        elif plan.precision == 'nf4' and quantization.is_quantized(name, module):
            _add(frozen, 'nf4', weight.numel() * NF4_BITS / 8)
        else:
            dtype = quantization.storage_dtype(name, plan.precision)
            _add(frozen, str(dtype).removeprefix('torch.'), weight.numel() * dtype.itemsize)
        if name.endswith(_LORA) and name.startswith('llm.'):
            _add(trained, 'LoRA', 4 * plan.rank * sum(weight.shape))
    learns = sum(trained.values())
    kept, recomputed = _language(config, plan)
    # while a micro-batch's gradient is added to what is there already, it is there, too: of the
    # greatest tensor in fp32 and in the products' type
    greatest = max(trained.values())
    rest = _words(config, plan) + _masks(config, plan) + greatest * 1.5
    # SAM's encoder has let go of all when the language model begins to read
    looking = _sam(config, plan)
    return Estimate(
        frozen=frozen,
        trained=trained,
        gradients=learns,
        optimizer=2 * learns,
        activations=max(looking, recomputed + rest),
        activations_kept=max(looking, kept + rest),
    )


def _add(sums: dict[str, float], key: str, size: float) -> None:
    sums[key] = sums.get(key, 0.0) + size


def _language(config: LisaConfig, plan: StepShape) -> tuple[float, float]:
    """Return the language model's activations [bytes]: all kept, and recomputed layer by layer."""
    llama = config.llama
    places = plan.batch_size * (
        config.image_tokens + 64 + plan.queries_per_image * plan.text_tokens
    )
    one = _layer(llama.hidden_size, llama.intermediate_size, plan) * places
    entrance = 4 * llama.hidden_size * places  # what a layer begins with, kept for each
    # one weight of the MLP, out of four bits for the product with it
    dequantised = 2 * llama.hidden_size * llama.intermediate_size
    layers = llama.num_hidden_layers
    # gradients of a layer are as large as what they are of, for one layer at a time
    return one * (layers + 1) + dequantised, entrance * (layers + 1) + 2 * one + dequantised


def _layer(width: int, inner: int, plan: StepShape) -> float:
    """Return what a layer keeps for one place [bytes].

    In fp32: two norms, of each the input, its scaled copy and the output: 6 D. In the products'
    type: the attention's input, twice more behind the dropout of LoRA (with a mask of one byte);
    queries and keys before and after turning, values, and the output: 9 D; of the MLP gate, its
    activation, up, and their product: 4 I. That is 1.4 times what autograd was seen to keep of
    four layers with D = 512, in bf16 as in fp32.
    """
    small = 2 if plan.bf16 else 4
    return 4 * 6 * width + small * (9 * width + 4 * inner) + 2 * width


def _words(config: LisaConfig, plan: StepShape) -> float:
    """Return what choosing words takes [bytes].

    lm_head as the products want it, and logits of the answers' places: in the products' type, in
    fp32, their softmax and the gradient.
    """
    llama = config.llama
    learnt = (
        plan.batch_size * plan.queries_per_image * plan.text_tokens
    )  # at most: all but the questions
    copy = 2 * llama.vocab_size * llama.hidden_size if plan.bf16 else 0
    return copy + learnt * llama.vocab_size * (2 + 4 + 4 + 4)


def _masks(config: LisaConfig, plan: StepShape) -> float:
    """Return what the mask decoder and the masks' losses keep [bytes].

    Of each mask: about 40 maps of grid x C in the decoder's layers, then upscaled maps of C / 4 at
    twice and of C / 8 at four times the grid, six of each; logits in SAM's square; and at the
    picture's size ten: logits, truth, sigmoid, both losses' products and gradients.
    """
    side = config.sam_size // config.sam.vision_config.patch_size
    cells, width = side * side, config.out_dim
    decoder = 4 * cells * (40 * width + 6 * 4 * width // 4 + 6 * 16 * width // 8)
    height, across = plan.image_size
    pixels = 4 * (2 * config.sam_size**2 + 10 * height * across)
    return plan.batch_size * plan.queries_per_image * (decoder + pixels)


def _sam(config: LisaConfig, plan: StepShape) -> float:
    """Return what SAM's encoder takes, of which nothing is kept [bytes].

    Its global attention adds relative positions: three matrices of cells x cells for each head.
    """
    vision = config.sam.vision_config
    side = config.sam_size // vision.patch_size
    size = 2 if plan.precision != 'fp32' or plan.bf16 else 4
    positions = 3 * vision.num_attention_heads * side**4 * size
    return plan.batch_size * (positions + 12 * side**2 * vision.mlp_dim * size)


def table(config: LisaConfig, plan: StepShape) -> str:
    """Return the estimate for people, in GB (1e9 bytes), as a Markdown table."""
    found = estimate(config, plan)
    rows = [
        *((f'weights that stay, {kind}', size) for kind, size in found.frozen.items()),
        *((f'weights that learn, {part}', size) for part, size in found.trained.items()),
        ('gradients', found.gradients),
        ("AdamW's two moments", found.optimizer),
        ('activations, layers recomputed', found.activations),
        ('reserve', RESERVE),
        ('**sum**', found.total()),
        ('sum with all activations kept', found.total(recompute=False)),
    ]
    lines = ['| what | GB |', '| --- | --- |']
    return '\n'.join([*lines, *(f'| {name} | {size / 1e9:.3f} |' for name, size in rows)])
