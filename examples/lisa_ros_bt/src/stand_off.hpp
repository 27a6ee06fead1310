// SPDX-License-Identifier: Apache-2.0
// Where to stop before an object. Needs no ROS.
#ifndef STAND_OFF_HPP_
#define STAND_OFF_HPP_

#include <algorithm>
#include <cmath>

namespace lisa_ros_bt
{

struct Point2D { double x, y; };        // [m]
struct Pose2D { double x, y, yaw; };    // [m], [rad]

/// Return where to stop: `distance` [m] before the target on the line from the robot, facing it.
/// A robot that is nearer already only turns. All in one frame with z up.
inline Pose2D stand_off(Point2D target, Point2D robot, double distance)
{
  const double dx = target.x - robot.x, dy = target.y - robot.y;
  const double length = std::hypot(dx, dy);
  const double share = length > 0.0 ? std::max(0.0, 1.0 - distance / length) : 0.0;
  return {robot.x + share * dx, robot.y + share * dy, std::atan2(dy, dx)};
}

}  // namespace lisa_ros_bt

#endif  // STAND_OFF_HPP_
