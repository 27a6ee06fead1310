# SPDX-License-Identifier: Apache-2.0
"""Speech to commands, without ROS: audio, voice activity detection, engines and a vocabulary."""
