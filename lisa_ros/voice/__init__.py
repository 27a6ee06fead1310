# SPDX-License-Identifier: Apache-2.0
"""Sound in, commands out: sound -> utterances -> words -> what was meant, if it is clear."""
