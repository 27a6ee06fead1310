# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of Qwen's vision-language models, and the prompt of one image and one request.

tokenizer.json is read as it is. Special tokens that a user types, such as "<|im_end|>", are
plain text: they neither end the prompt nor stand for an image. Any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from lisa_ros.error_text import error_summary
from lisa_ros.errors import CheckpointError
from lisa_ros.model.file_checks import check_file

_MAX_BYTES = 64 * 2**20  # of tokenizer.json; Qwen's has 11 MB
_SPECIAL = (
    *('<|im_start|>', '<|im_end|>', '<|endoftext|>'),
    *('<|vision_start|>', '<|image_pad|>', '<|vision_end|>'),
)


class QwenTokenizer:
    """Texts to ids and back."""

    def __init__(self, tokenizer: Tokenizer, source: str | Path = 'the tokenizer'):
        """Wrap a tokenizer, which is changed: it reads special tokens as text.

        Raises:
            CheckpointError: it lacks a token of Qwen's prompts; `source` names it.
        """
        missing = [token for token in _SPECIAL if tokenizer.token_to_id(token) is None]
        if missing:
            raise CheckpointError(
                f'{source} has no token {", ".join(missing)}; expected that of a Qwen-VL model'
            )
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._ids = {token: tokenizer.token_to_id(token) for token in _SPECIAL}
        self.image_id = self._ids['<|image_pad|>']
        self.stop_ids = (self._ids['<|im_end|>'], self._ids['<|endoftext|>'])

    @classmethod
    def load(cls, folder: Path) -> QwenTokenizer:
        """Read tokenizer.json of a model folder.

        Raises:
            CheckpointError: it is missing, damaged, or not that of a Qwen-VL model.
        """
        path = folder / 'tokenizer.json'
        size = check_file(path, 'the tokenizer of a Qwen-VL model')
        if size > _MAX_BYTES:
            raise CheckpointError(f'{path}: has {size} bytes; expected at most {_MAX_BYTES}')
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library has no error type of its own
            raise CheckpointError(
                f'{path}: cannot be read as a tokenizer ({error_summary(error)}); download it '
                'again'
            ) from error
        return cls(tokenizer, path)

    def prompt_ids(
        self,
        system: str,
        request: str,
        image_tokens: int,
        turns: Sequence[tuple[str, str]] = (),
    ) -> list[int]:
        """Return the ids of a prompt, up to where the answer begins; as the chat template has it.

        Args:
            system: the system message; '': none.
            request: the text after the image, or after the earlier turns.
            image_tokens: how many positions the image takes.
            turns: earlier requests, of which the first follows the image, and their answers.
        """
        image = [self._ids['<|vision_start|>'], *[self.image_id] * image_tokens]
        image.append(self._ids['<|vision_end|>'])
        ids = self._message('system', self._text(system)) if system else []
        for earlier, answer in turns:
            ids += self._message('user', [*image, *self._text(earlier)])
            ids += self._message('assistant', self._text(answer))
            image = []  # only the first request has it
        ids += self._message('user', [*image, *self._text(request)])
        return [*ids, self._ids['<|im_start|>'], *self._text('assistant\n')]

    def _message(self, role: str, content: Sequence[int]) -> list[int]:
        opening = [self._ids['<|im_start|>'], *self._text(f'{role}\n')]
        return [*opening, *content, self._ids['<|im_end|>'], *self._text('\n')]

    def first_id(self, text: str) -> int:
        """Return the id of the first token of a text."""
        return self._text(text)[0]

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def stream(self) -> QwenTokenStream:
        """Return a decoder for ids that arrive one at a time."""
        return QwenTokenStream(self._tokenizer)


class QwenTokenStream:
    """Decodes ids one at a time into text to append, without special tokens."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """Return the text that this id adds; '' while a character is incomplete."""
        try:
            return self._stream.step(self._tokenizer, token_id) or ''
        except Exception:  # noqa: BLE001  # the library has no own type; bytes that are no text
            self._stream = DecodeStream(skip_special_tokens=True)
            return '\ufffd'
