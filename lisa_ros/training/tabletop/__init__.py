# SPDX-License-Identifier: Apache-2.0
"""Training of lisa-tabletop on generated scenes."""
