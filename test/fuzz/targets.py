# SPDX-License-Identifier: Apache-2.0
"""All fuzz targets by name."""

import file_targets
import message_targets
import model_targets
import serving_targets
import text_targets

TARGETS = {
    **message_targets.TARGETS,
    **file_targets.TARGETS,
    **model_targets.TARGETS,
    **serving_targets.TARGETS,
    **text_targets.TARGETS,
}
