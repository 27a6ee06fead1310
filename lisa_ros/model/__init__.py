# SPDX-License-Identifier: Apache-2.0
"""The LISA model: tensors, weights and their layouts on disk, tokenizer and image processing."""
