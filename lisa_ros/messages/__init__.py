# SPDX-License-Identifier: Apache-2.0
"""ROS messages and bags to arrays and back; needs no rclpy."""
