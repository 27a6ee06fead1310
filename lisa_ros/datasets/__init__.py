# SPDX-License-Identifier: Apache-2.0
"""Pictures that people have labelled, in the layouts that data sets are published in."""
