# SPDX-License-Identifier: Apache-2.0
"""Scenes, requests and the loop that trains `lisa-tabletop` from scratch."""
