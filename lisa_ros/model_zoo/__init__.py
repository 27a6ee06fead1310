# SPDX-License-Identifier: Apache-2.0
"""The checkpoints that are known to load: what they can do, and what memory they need."""
