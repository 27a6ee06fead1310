# SPDX-License-Identifier: Apache-2.0
"""Masks carried from image to image."""
