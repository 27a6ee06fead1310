# SPDX-License-Identifier: Apache-2.0
"""Image files and mask files of other people: the one place that decodes them. No ROS."""
