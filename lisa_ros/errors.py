# SPDX-License-Identifier: Apache-2.0
"""What we raise when the input is wrong: the message says what came, what was expected, the cure.

Edges (the node, the CLI, the session) catch `LisaError` and report one line; anything else is a
bug of ours and keeps its traceback.
"""


class LisaError(Exception):
    """Something the user can mend."""


class ImageError(LisaError):
    """A picture or a depth image that cannot be read as what it says it is."""


class QueryError(LisaError):
    """A command that cannot be put into a prompt: empty, too long, with a picture in it."""


class CheckpointError(LisaError):
    """A folder or file that is not the checkpoint it should be."""


class SettingsError(LisaError):
    """A setting with a value outside its range, or a device or precision that is not here."""


class DataError(LisaError):
    """Scenes, assets, bags or truth that are missing or broken."""


class TrackingError(LisaError):
    """An answer about a frame that no tracker knows, or not any more."""


class TransformError(LisaError):
    """A transform between frames that TF does not know, or tf2_ros that is not installed."""
