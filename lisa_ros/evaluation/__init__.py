# SPDX-License-Identifier: Apache-2.0
"""Measure how good a model is, with the metrics of the published benchmarks."""
