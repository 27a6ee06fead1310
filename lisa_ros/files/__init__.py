# SPDX-License-Identifier: Apache-2.0
"""Files of other people: why one cannot be read, what is in it, and where its paths may lead."""
