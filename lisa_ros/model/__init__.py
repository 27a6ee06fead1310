# SPDX-License-Identifier: Apache-2.0
"""The LISA model: tensors in, tensors out; `checkpoint` alone knows files and old names."""
