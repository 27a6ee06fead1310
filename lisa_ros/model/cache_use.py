# SPDX-License-Identifier: Apache-2.0
"""What `prefix_cache.PrefixCache` holds; without PyTorch, for processes that have no model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheUse:
    """What a cache holds."""

    prompts: int
    bytes: int
    limit: int  # [bytes]
