# SPDX-License-Identifier: Apache-2.0
"""LISA for ROS 2: words and a picture in, masks and their reason out (arXiv 2308.00692)."""

from pkgutil import extend_path

# The built messages live in another folder of the same package name (`lisa_ros.msg`, made by
# rosidl): without this line a source tree that comes first on sys.path would hide them.
__path__ = extend_path(__path__, __name__)

__version__ = '0.1.0'
