# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL and Qwen3-VL of transformers: load them, ask about an image, generate greedily.

An image token has a position in three directions, which the library computes only if it is told
which tokens are the image's: without `mm_token_type_ids` it counts them like words, silently, and
the model points beside the objects. So positions are computed here and passed.

Letters: L tokens of the prompt. Threads: one thread at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from lisa_ros.errors import NON_FINITE_CAUSE, CheckpointError, ModelError, QueryError
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.model.image_processing import image_key
from lisa_ros.model.json_file import JsonFields
from lisa_ros.model.key_values import KeyValues
from lisa_ros.model.limits import Limits
from lisa_ros.model.prefix_cache import DEFAULT_CACHE_BYTES, PrefixCache, PromptKey
from lisa_ros.model.quantization import PRECISIONS, QUANTIZED_BITS, quantize_linear
from lisa_ros.model.transformers_folder import check_claims, load_model
from lisa_ros.model.weight_files import Shapes, WeightFiles
from lisa_ros.results import Turn
from lisa_ros.vlm.image_input import PatchLayout, prepare_image
from lisa_ros.vlm.pointing_model import ChoiceProbabilities, NeverStop, StopSignal, WordToken
from lisa_ros.vlm.profiles import Profile
from lisa_ros.vlm.prompt_cache import prompt_key, transformers_cache
from lisa_ros.vlm.qwen_tokenizer import QwenTokenizer

_ANSWER_ROOM = 256  # positions for an answer, doubled when they are full

QwenModel = Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration
_NEVER = NeverStop()


@dataclass(frozen=True)
class _Family:
    """A class of transformers, and the mean and standard deviation of its images' colours."""

    model: type[QwenModel]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_FAMILIES = {  # by model_type in config.json
    'qwen2_5_vl': _Family(
        Qwen2_5_VLForConditionalGeneration,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    'qwen3_vl': _Family(Qwen3VLForConditionalGeneration, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class QwenInputs:
    """A prompt with its image."""

    input_ids: Tensor  # (1, L) int64
    mm_token_type_ids: Tensor  # (1, L) int64, 1 for image tokens, 0 for words
    pixel_values: Tensor  # (patches, values) float32
    image_grid_thw: Tensor  # (1, 3) int64: 1, rows and columns of patches
    resized: tuple[int, int]  # width and height of the image that the model gets [px]
    key: PromptKey  # the prompt's, for the cache

    @property
    def length(self) -> int:
        """Tokens of the prompt, L."""
        return self.input_ids.shape[1]


class QwenVL:
    """A loaded vision-language model with its tokenizer; a `PointingModel`."""

    def __init__(
        self,
        model: QwenModel,
        tokenizer: QwenTokenizer,
        profile: Profile,
        repetition_penalty: float = 1.0,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ):
        """Wrap a model.

        Args:
            model: in eval mode; it runs on the device where its weights are.
            tokenizer: of the model.
            profile: how to ask it.
            repetition_penalty: as transformers' `generate` applies it; 1: none. Qwen's
                checkpoints have 1.05.
            cache_bytes: memory for keys and values of earlier prompts; 0: prompts are read whole.

        Raises:
            CheckpointError: model and tokenizer do not belong together.
        """
        if model.config.image_token_id != tokenizer.image_id:
            raise CheckpointError(
                f'config.json says that image_token_id is {model.config.image_token_id}, and the '
                f'tokenizer that it is {tokenizer.image_id}: files of two models are mixed'
            )
        self.profile, self.tokenizer = profile, tokenizer
        self._model, self._penalty = model, repetition_penalty
        self._prefixes = PrefixCache(cache_bytes)
        vision, family = model.config.vision_config, _FAMILIES[profile.model_type]
        self._layout = PatchLayout(
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
            family.mean,
            family.std,
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        profile: Profile,
        device: torch.device,
        precision: str,
        limits: Limits | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> QwenVL:
        """Load weights from safetensors in the format of transformers; no code in the folder runs.

        Args:
            folder: of a model whose config.json has the profile's type.
            profile: how to ask it.
            device: of the model.
            precision: fp32, bf16 or fp16; int8 or nf4 for the linear layers of the language model.
            limits: of the memory.
            cache_bytes: as above.

        Raises:
            CheckpointError: a file is missing, damaged, or claims more than fits.
        """
        check_claims(folder)
        shapes = WeightFiles.of_folder(folder).shapes()
        (limits or Limits()).check_memory(weight_bytes(shapes, precision), str(device), folder)
        tokenizer = QwenTokenizer.load(folder)
        family = _FAMILIES[profile.model_type]
        model = load_model(family.model, folder, profile.model_type, PRECISIONS[precision])
        if precision in QUANTIZED_BITS:
            quantize(model, device, precision)
        penalty = _repetition_penalty(folder)
        return cls(model.to(device).eval(), tokenizer, profile, penalty, cache_bytes)

    @property
    def device(self) -> str:
        """The device of the model."""
        return str(self._model.device)

    @property
    def cache_use(self) -> CacheUse:
        """What is kept of earlier prompts; see `PointingModel`."""
        return self._prefixes.use

    def clear_cache(self) -> None:
        """Drop the keys and values of earlier prompts."""
        self._prefixes.clear()

    def prepare(
        self,
        image: np.ndarray,
        query: str,
        min_answer_tokens: int = 1,
        turns: Sequence[Turn] = (),
    ) -> QwenInputs:
        """Return the prompt of a query about an image; see `PointingModel`."""
        if not query.strip().strip(self.profile.stripped):
            raise QueryError('the query is empty: say what to look for, as in "the red mug"')
        request, exchanges = self.profile.request(query), self.profile.exchanges(turns)
        return self._inputs(image, request, min_answer_tokens, exchanges)

    def prepare_request(
        self, image: np.ndarray, request: str, turns: Sequence[Turn] = ()
    ) -> QwenInputs:
        """Return the prompt of a request that is not the profile's; see `PointingModel`."""
        return self._inputs(image, request, exchanges=self.profile.exchanges(turns))

    def _inputs(
        self,
        image: np.ndarray,
        request: str,
        min_answer_tokens: int = 1,
        exchanges: Sequence[tuple[str, str]] = (),
    ) -> QwenInputs:
        prepared = prepare_image(image, self.profile.resize, self._layout)
        image_tokens = prepared.rows * prepared.columns // self._layout.merge**2
        limit = self.max_positions - min_answer_tokens
        for oldest in range(len(exchanges) + 1):
            ids = self.tokenizer.prompt_ids(
                self.profile.system, request, image_tokens, exchanges[oldest:]
            )
            if len(ids) <= limit:
                break
        else:
            raise QueryError(
                f'query and image make a prompt of {len(ids)} tokens, at most {limit} fit into '
                'this model: shorten the query'
            )
        input_ids = torch.tensor([ids], device=self._model.device)
        return QwenInputs(
            input_ids,
            (input_ids == self.tokenizer.image_id).long(),
            torch.from_numpy(prepared.patches).to(self._model.device),
            torch.tensor([[1, prepared.rows, prepared.columns]], device=self._model.device),
            prepared.size,
            prompt_key(ids, self.tokenizer.image_id, image_key(image)),
        )

    @property
    def max_positions(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self._model.config.text_config.max_position_embeddings

    def max_answer_tokens(self, prompt: QwenInputs) -> int:
        """Return how many tokens an answer may have; see `PointingModel`."""
        free_positions = self.max_positions - prompt.length
        return min(self.profile.max_new_tokens, free_positions)

    def positions(self, inputs: QwenInputs) -> tuple[Tensor, Tensor]:
        """Return where the tokens of a prompt are, and how far those after it are shifted.

        Returns:
            Time, row and column of each token, (3, 1, L); and the difference between position and
            number of the tokens after the prompt, (1, 1): an image takes fewer positions than
            tokens.
        """
        return self._model.model.get_rope_index(
            inputs.input_ids,
            mm_token_type_ids=inputs.mm_token_type_ids,
            image_grid_thw=inputs.image_grid_thw,
        )

    @torch.inference_mode()
    def generate(
        self,
        inputs: QwenInputs,
        max_new_tokens: int,
        stop: StopSignal = _NEVER,
    ) -> Iterator[WordToken]:
        """Yield the answer's tokens, up to and with one that ends it, or until limit or stop.

        Args:
            inputs: of `prepare`.
            max_new_tokens: length limit of the answer.
            stop: looked at before each token.

        Raises:
            ModelError: the scores of a token are NaN.
        """
        positions, shift = self.positions(inputs)
        room = inputs.length + min(max_new_tokens, _ANSWER_ROOM)
        key_values = self._prefixes.find(inputs.key, inputs.length - 1, room)
        key_values = key_values or self._new_key_values(room)
        step = _unread(inputs, positions, key_values.length)
        cache = transformers_cache(key_values)
        stream, seen = self.tokenizer.stream(), inputs.input_ids[0]
        for number in range(max_new_tokens):
            if stop.is_set():
                return
            output = self._model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token, probability = self._choose(output.logits[0, -1].float(), seen)
            if number == 0:
                self._prefixes.add(inputs.key, key_values)
            token_id = int(token)
            if token_id in self.tokenizer.stop_ids:
                yield WordToken(token_id, '', probability, is_end=True)
                return
            yield WordToken(token_id, stream.push(token_id), probability, is_end=False)
            position = (len(seen) + shift).expand(3, 1, 1)
            seen = torch.cat([seen, token[None]])
            step = {'input_ids': token[None, None], 'position_ids': position}

    def _new_key_values(self, capacity: int) -> KeyValues:
        """Return an empty cache for up to `capacity` positions."""
        model, config = self._model.model.language_model, self._model.config.text_config
        width = model.layers[0].self_attn.head_dim
        shape = (config.num_hidden_layers, 2, 1, config.num_key_value_heads, capacity, width)
        return KeyValues(model.norm.weight.new_empty(shape))

    @torch.inference_mode()
    def choice_probabilities(
        self, inputs: QwenInputs, choices: Sequence[str], stop: StopSignal = _NEVER
    ) -> ChoiceProbabilities:
        """Return how probable each choice is as the first token of an answer.

        Args:
            inputs: of `prepare_request`.
            choices: texts of one token each.
            stop: looked at before the only step.

        Raises:
            ModelError: the scores of the token are NaN.
        """
        if stop.is_set():
            return ChoiceProbabilities((0.0,) * len(choices))
        positions, _ = self.positions(inputs)
        output = self._model(
            input_ids=inputs.input_ids,
            pixel_values=inputs.pixel_values,
            image_grid_thw=inputs.image_grid_thw,
            position_ids=positions,
            logits_to_keep=1,
        )
        scores = output.logits[0, -1].float()
        self._choose(scores, inputs.input_ids[0])  # NaN is an error
        ids = [self.tokenizer.first_id(text) for text in choices]
        return ChoiceProbabilities(tuple(scores.softmax(0)[ids].tolist()))

    def _choose(self, scores: Tensor, seen: Tensor) -> tuple[Tensor, float]:
        """Return the best token and its probability, from the scores of all tokens.

        Raises:
            ModelError: a score is NaN.
        """
        penalized = scores
        if self._penalty != 1:
            own = scores[seen]
            own = torch.where(own < 0, own * self._penalty, own / self._penalty)
            penalized = scores.scatter(0, seen, own)
        token = penalized.argmax()
        probability = float((scores[token] - scores.logsumexp(0)).exp())
        if not math.isfinite(probability):
            raise ModelError(
                f'the model computed NaN in the scores of the next token: {NON_FINITE_CAUSE}'
            )
        return token, probability


def _unread(inputs: QwenInputs, positions: Tensor, start: int) -> dict[str, Tensor]:
    """Return the arguments of the model for a prompt without its first `start` tokens.

    Args:
        inputs: of the prompt.
        positions: of its tokens, (3, 1, L).
        start: before its image, or behind it.
    """
    step = {'input_ids': inputs.input_ids[:, start:], 'position_ids': positions[..., start:]}
    if inputs.mm_token_type_ids[0, start:].any():
        step |= {'pixel_values': inputs.pixel_values, 'image_grid_thw': inputs.image_grid_thw}
    return step


def weight_bytes(shapes: Shapes, precision: str) -> int:
    """Return the size of the weights in a precision [bytes]."""
    size, bits = PRECISIONS[precision].itemsize, QUANTIZED_BITS.get(precision)
    total = 0.0
    for name, shape in shapes.items():
        is_quantized = bits and len(shape) == 2 and '.layers.' in name
        total += math.prod(shape) * (bits / 8 if is_quantized else size)
    return math.ceil(total)


def quantize(model: QwenModel, device: torch.device, precision: str) -> None:
    """Replace the linear layers of the language model by quantized ones on the device."""
    for layer in model.model.language_model.layers:
        for parent in list(layer.modules()):
            for name, linear in list(parent.named_children()):
                if type(linear) is not nn.Linear:
                    continue
                quantized = quantize_linear(
                    linear, linear.weight.data.to(PRECISIONS[precision]), device, precision
                )
                if linear.bias is not None:  # of queries, keys and values in Qwen2.5-VL
                    quantized.bias = nn.Parameter(linear.bias.data.to(device), requires_grad=False)
                setattr(parent, name, quantized)


def _repetition_penalty(folder: Path) -> float:
    """Return the repetition penalty in generation_config.json; 1 without one.

    Raises:
        CheckpointError: the file is damaged, or the penalty is none.
    """
    path = folder / 'generation_config.json'
    if not path.exists():
        return 1.0
    return float(JsonFields.read(path).number('repetition_penalty', 1.0, 0.5, 2.0))
