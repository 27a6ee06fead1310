# SPDX-License-Identifier: Apache-2.0
"""The generator of tabletop scenes and queries that lisa-tabletop learns from."""
