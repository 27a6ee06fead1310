# SPDX-License-Identifier: Apache-2.0
"""Vision-language models that say where objects are: prompts, generation, parsing of answers."""
