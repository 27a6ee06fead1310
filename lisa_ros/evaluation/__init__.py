# SPDX-License-Identifier: Apache-2.0
"""How good a model is, in the field's own measures."""
