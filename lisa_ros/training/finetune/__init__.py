# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of a LISA model on annotated images, as the original trains."""
