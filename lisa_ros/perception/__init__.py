# SPDX-License-Identifier: Apache-2.0
"""An image and a command become masks: prompts, the segmenter, masks and their scores."""
