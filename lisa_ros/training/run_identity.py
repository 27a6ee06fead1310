# SPDX-License-Identifier: Apache-2.0
"""What a training depends on besides the shapes of its weights and its seed.

It is saved with the state of a run, so that a resumed training is compared with the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lisa_ros.errors import DataError
from lisa_ros.files.json_schema import TEXT, MapOf, Record, Value, check_json
from lisa_ros.files.text import File

_KEYS = ('base_name', 'base', 'options', 'data')  # in the file: old runs must load
_SCHEMA = Record(
    {
        'base_name': TEXT,
        'base': MapOf(Value((Tensor,), 'a tensor')),
        'options': MapOf(TEXT),
        'data': MapOf(TEXT),
    }
)
_SAMPLE_SIZE = 256  # values of each weight
_TOLERANCE = 2**-8  # relative; bfloat16 rounds by up to half of it


@dataclass(frozen=True)
class RunIdentity:
    """The base of a training, its options and its data. What is empty is not compared."""

    base_name: str = ''  # folder or hub id, for messages
    base: Mapping[str, Tensor] = field(default_factory=dict)  # see `sample_weights`
    options: Mapping[str, str] = field(default_factory=dict)  # by flag; must stay the same
    data: Mapping[str, str] = field(default_factory=dict)  # by flag; may change, with a warning

    @classmethod
    def read(cls, path: File, content: object) -> RunIdentity:
        """Return the identity in a state file.

        Args:
            path: of the file, for messages.
            content: as `as_dict` returned it.

        Raises:
            DataError: a value has another type; the message names the key.
        """
        check_json(path, content, _SCHEMA, 'identity')
        return cls(**{key: content[key] for key in _KEYS})

    def as_dict(self) -> dict[str, object]:
        """Return what `read` reads: texts and tensors."""
        return {
            key: value if isinstance(value, str) else dict(value)
            for key, value in ((key, getattr(self, key)) for key in _KEYS)
        }

    def check_options(self, path: File, current: RunIdentity) -> None:
        """Check that a training has the options of this run.

        Raises:
            DataError: it has others; the message names the first.
        """
        for flag in sorted(self.options.keys() & current.options.keys()):
            saved, given = self.options[flag], current.options[flag]
            if saved != given:
                raise DataError(
                    f'{path} belongs to a run with {flag} {saved}, and this training has {flag} '
                    f'{given}: trained weights have no meaning with another; use {flag} {saved}, '
                    'or another --out'
                )

    def check_base(self, path: File, current: RunIdentity) -> None:
        """Check that a training starts from the base of this run, in any folder and precision.

        Raises:
            DataError: it starts from another one.
        """
        names = sorted(self.base.keys() & current.base.keys())  # quantized weights have no sample
        different = [n for n in names if not _is_same(self.base[n], current.base[n])]
        if different:
            raise DataError(
                f'{path} belongs to a run that started from {self.base_name}, and '
                f'{len(different)} frozen weights of {current.base_name} differ from it, for '
                f'example {different[0]}: start from the model of that run, or choose another '
                '--out'
            )

    def resumed_by(self, current: RunIdentity) -> RunIdentity:
        """Return the identity of this run after a call with another: its data are the newest."""
        return RunIdentity(
            self.base_name or current.base_name,
            {**current.base, **self.base},
            {**current.options, **self.options},
            {**self.data, **current.data},
        )

    def changes_of_data(self, current: RunIdentity) -> list[str]:
        """Return a sentence for each difference of the data."""
        return [
            f'{flag} was {self.data[flag]} and is {current.data[flag]} now'
            for flag in sorted(self.data.keys() & current.data.keys())
            if self.data[flag] != current.data[flag]
        ]


def sample_weights(weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return some values of each weight, (n,) float32 on the CPU, n <= 512.

    Quantized weights, which have no values of their own, are left out.
    """
    samples = {}
    for name, weight in weights:
        if weight.is_floating_point():
            stride = max(1, weight.numel() // _SAMPLE_SIZE) | 1  # odd: not along one column
            samples[name] = weight.detach().flatten()[::stride].float().cpu().clone()
    return samples


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Return whether two samples are those of one weight, also in another precision."""
    if first.shape != second.shape:
        return False
    return torch.allclose(first.cpu(), second.cpu(), rtol=_TOLERANCE, atol=1e-7, equal_nan=True)
