# SPDX-License-Identifier: Apache-2.0
"""Models behind the Backend protocol: an image and a query in, text and scored masks out."""
