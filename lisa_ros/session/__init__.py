# SPDX-License-Identifier: Apache-2.0
"""Commands of one camera: parsing, matching of messages, scheduling, dialogue."""
