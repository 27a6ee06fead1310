# SPDX-License-Identifier: Apache-2.0
"""Readers of annotated images and dialogues, in the layouts of published data sets."""
