# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a LISA on labelled images."""
