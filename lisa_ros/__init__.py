# SPDX-License-Identifier: Apache-2.0
"""LISA for ROS 2: an image and a command in, masks and their reason out (arXiv 2308.00692)."""

from pkgutil import extend_path

# rosidl installs the generated `lisa_ros.msg` in another folder with the same package name.
# Without this line, a source tree that comes first on sys.path would hide it.
__path__ = extend_path(__path__, __name__)

__version__ = '0.1.0'
