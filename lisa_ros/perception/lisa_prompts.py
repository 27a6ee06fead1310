# SPDX-License-Identifier: Apache-2.0
"""The prompts of a LISA: token ids of a query, and what the language model has read of them.

What was read of earlier prompts is not read again (prefix_cache.py). Earlier replies are drafts of
the next ones (drafts.py).

Threads: one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lisa_ros.model import generation
from lisa_ros.model.batch_beginnings import read_beginnings
from lisa_ros.model.batch_generation import BatchPrompt
from lisa_ros.model.cache_use import CacheUse
from lisa_ros.model.drafts import NO_DRAFTS, Drafts, ReplyMemory
from lisa_ros.model.language_model import LanguageModel
from lisa_ros.model.lisa import LISA
from lisa_ros.model.packing import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from lisa_ros.model.prefix_cache import PrefixCache, PromptKey
from lisa_ros.model.tokenizer import Tokenizer
from lisa_ros.perception.backend import InferenceOptions, Query
from lisa_ros.perception.image_encoder import EncodedImage
from lisa_ros.perception.prompts import ANSWER_TEMPLATES, append_boxes, prompt_ids, training_ids
from lisa_ros.results import Turn

_MIN_ANSWER_TOKENS = 64  # positions that a prompt leaves free for the answer [tokens]
# of drafts, by device; a GPU reads a few more positions at next to no cost
_MAX_DRAFT_TOKENS = {'cpu': 16, 'cuda': 64}


class PromptReader:
    """Makes and reads prompts; it keeps the newest ones, and the replies to them."""

    def __init__(
        self,
        model: LISA,
        tokenizer: Tokenizer,
        template: str,
        language_model: LanguageModel,
        *,
        cache_bytes: int,
        usual_replies: Sequence[str],
    ):
        """Begin without earlier prompts.

        Args:
            model: gives embeddings and sizes.
            tokenizer: the model's.
            template: conversation template, a name in prompts.TEMPLATES.
            language_model: reads the prompts.
            cache_bytes: memory for keys and values of earlier prompts; 0: prompts are read whole.
            usual_replies: of the model, the most usual first; empty: those of the released LISA.
        """
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._language_model = language_model
        self._prefixes = PrefixCache(cache_bytes)
        replies = _reply_ids(tokenizer, template, usual_replies)
        self._replies = ReplyMemory(replies, kept=64 if cache_bytes else 0)

    @property
    def cache_use(self) -> CacheUse:
        """What is kept of earlier prompts."""
        return self._prefixes.use

    def clear(self) -> None:
        """Drop earlier prompts and replies."""
        self._prefixes.clear()
        self._replies.clear()

    # ---- token ids

    @property
    def max_positions(self) -> int:
        """The positions that the language model has for prompt and answer."""
        return self._model.config.llama.max_position_embeddings

    def ids(self, text: str, query: Query, options: InferenceOptions) -> list[int]:
        """Return the token ids of a prompt; `text` is the query as the model gets it.

        Raises:
            QueryError: the text is too long.
        """
        dialogue = query.dialogue
        min_answer_tokens = min(_MIN_ANSWER_TOKENS, options.max_new_tokens)
        return prompt_ids(
            self._tokenizer,
            self._template,
            text,
            append_boxes(dialogue) if options.dialogue_boxes else dialogue,
            typed_specials=options.typed_specials,
            max_length=(
                self.max_positions + 1 - self._model.config.image_tokens - min_answer_tokens
            ),
        )

    def length(self, ids: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return len(ids) - 1 + self._model.config.image_tokens

    def room(self, ids: Sequence[int], options: InferenceOptions) -> int:
        """Return how many tokens the answer to a prompt may have."""
        return min(options.max_new_tokens, self.max_positions - self.length(ids))

    def typed_positions(self, text: str, ids: list[int]) -> list[int]:
        """Return the positions of the [SEG] tokens that the user typed in this query.

        [SEG] tokens of earlier turns are left out: their masks belong to the earlier answers.
        """
        typed = self._tokenizer.encode(text, parse_special=True)
        count = typed.count(self._model.config.seg_token_id)
        positions = self.seg_positions(ids)
        return positions[len(positions) - count :]

    def seg_positions(self, ids: list[int]) -> list[int]:
        """Return the positions of the [SEG] tokens of a prompt, in order."""
        image_position = ids.index(IMAGE_TOKEN_INDEX)
        shift = self._model.config.image_tokens - 1  # the image takes P positions for one id
        return [
            position + (shift if position > image_position else 0)
            for position, token_id in enumerate(ids)
            if token_id == self._model.config.seg_token_id
        ]

    # ---- reading

    def drafts(self, text: str, room: int) -> Drafts:
        """Return drafts of an answer, with as many tokens as cost less than they save.

        Args:
            text: of the query.
            room: how many tokens the answer may have.
        """
        device = self._language_model.device.type
        limit = _MAX_DRAFT_TOKENS.get(device, _MAX_DRAFT_TOKENS['cpu'])
        return self._replies.drafts(text, min(limit, room))

    def read(
        self,
        ids: list[int],
        encoded: EncodedImage,
        seg_positions: Sequence[int] = (),
        drafts: Drafts = NO_DRAFTS,
        max_new_tokens: int = 0,
        with_points: bool = False,
    ) -> generation.Prefill:
        """Read a prompt; what is known of its beginning is not read again.

        Args:
            ids: of the prompt.
            encoded: its image.
            seg_positions: of [SEG] in the prompt whose masks are wanted.
            drafts: of the answer.
            max_new_tokens: room for the answer.
            with_points: also keep the states of the image, from which READ makes points. They do
                not depend on the query, which comes after the image.

        Raises:
            ModelError: the scores of a token are NaN.
        """
        with torch.inference_mode():
            input_ids = torch.tensor(ids, device=self._language_model.device)
            embeddings = self._model.embed(input_ids, encoded.clip_tokens)
        length = len(embeddings)
        needed = min((position - 1 for position in seg_positions), default=length - 1)
        image, lacks_states = ids.index(IMAGE_TOKEN_INDEX), encoded.image_states is None
        if with_points and lacks_states:
            needed = min(needed, image)
        room = length + max(drafts.max_tokens, max_new_tokens)
        known = self._prefixes.find(self._key(ids, encoded), needed, room)
        prompt = generation.prefill(
            self._language_model, embeddings, known, drafts, max_new_tokens, needed
        )
        if with_points and lacks_states:
            start = image - (prompt.length - len(prompt.states))
            states = prompt.states[start : start + self._model.config.image_tokens]
            encoded.image_states = states.clone()
        return prompt

    @torch.inference_mode()
    def read_beginnings(
        self,
        texts: Sequence[str],
        prompts: Sequence[list[int]],
        images: Sequence[EncodedImage],
        options: InferenceOptions,
    ) -> list[BatchPrompt]:
        """Read the beginnings of several prompts, up to their images.

        Args:
            texts: of the queries.
            prompts: ids of each.
            images: of each.
            options: for all of them.
        """
        keys = [self._key(ids, image) for ids, image in zip(prompts, images, strict=True)]
        device = self._language_model.device
        embeddings = [
            self._model.embed(torch.tensor(ids, device=device), image.clip_tokens)
            for ids, image in zip(prompts, images, strict=True)
        ]
        known = read_beginnings(self._language_model, self._prefixes, keys, embeddings)
        rooms = [self.room(ids, options) for ids in prompts]
        drafts = [self.drafts(text, room) for text, room in zip(texts, rooms, strict=True)]
        return list(map(BatchPrompt, embeddings, rooms, known, drafts))

    def _key(self, ids: Sequence[int], encoded: EncodedImage) -> PromptKey:
        return PromptKey(tuple(ids), encoded.key, self._model.config.image_tokens)

    # ---- remembering

    def keep(self, ids: list[int], encoded: EncodedImage, prompt: generation.Prefill) -> None:
        """Keep a prompt for the next one; `ids`: with its answer."""
        self._prefixes.add(self._key(ids, encoded), prompt.key_values)

    def keep_reply(self, text: str, answer: Sequence[int]) -> None:
        """Keep a complete answer, with its </s>, as a draft."""
        self._replies.add(text, answer)


def _reply_ids(
    tokenizer: Tokenizer, template: str, replies: Sequence[str]
) -> list[tuple[int, ...]]:
    """Return the token ids of replies, each with its </s>; none given: of the released LISA's."""
    ids = []
    for reply in replies or ANSWER_TEMPLATES:
        prompt_and_reply, labels = training_ids(tokenizer, template, [Turn('x', reply)])
        ids.append(tuple(prompt_and_reply[labels.count(IGNORE_INDEX) :]))
    return ids
