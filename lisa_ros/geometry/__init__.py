# SPDX-License-Identifier: Apache-2.0
"""Camera models, depth images and 3D objects; plain arrays, no ROS."""
