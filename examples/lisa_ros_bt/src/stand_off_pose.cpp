// SPDX-License-Identifier: Apache-2.0
#include "stand_off_pose.hpp"

#include <cmath>
#include <memory>

#include <rclcpp/logging.hpp>
#include <tf2/LinearMath/Transform.h>
#include <tf2/exceptions.h>
#include <tf2/time.h>
#if __has_include(<tf2_ros/buffer.hpp>)
#include <tf2_ros/buffer.hpp>
#else
#include <tf2_ros/buffer.h>  // Jazzy
#endif

#include "stand_off.hpp"

namespace lisa_ros_bt
{
namespace
{

tf2::Transform to_tf2(const geometry_msgs::msg::Transform & transform)
{
  const auto & q = transform.rotation;
  const auto & t = transform.translation;
  return tf2::Transform(tf2::Quaternion(q.x, q.y, q.z, q.w), tf2::Vector3(t.x, t.y, t.z));
}

}  // namespace

BT::NodeStatus StandOffPose::tick()
{
  const auto object = getInput<geometry_msgs::msg::PoseStamped>("object");
  if (!object) {
    return fail(object.error());
  }
  const auto frame = getInput<std::string>("global_frame").value();
  const auto base = getInput<std::string>("robot_base_frame").value();
  const auto buffer = config().blackboard->get<std::shared_ptr<tf2_ros::Buffer>>("tf_buffer");
  geometry_msgs::msg::TransformStamped camera, robot;
  try {
    const auto & header = object->header;
    camera = buffer->lookupTransform(frame, header.frame_id, tf2_ros::fromMsg(header.stamp));
    robot = buffer->lookupTransform(frame, base, tf2::TimePointZero);
  } catch (const tf2::TransformException & error) {
    return fail(error.what());
  }
  const auto & centroid = object->pose.position;
  const auto & position = robot.transform.translation;
  const auto target = to_tf2(camera.transform) * tf2::Vector3(centroid.x, centroid.y, centroid.z);
  const auto stop = stand_off(
    {target.x(), target.y()}, {position.x, position.y}, getInput<double>("distance").value());
  geometry_msgs::msg::PoseStamped goal;
  goal.header.frame_id = frame;
  goal.header.stamp = robot.header.stamp;
  goal.pose.position.x = stop.x;
  goal.pose.position.y = stop.y;
  goal.pose.orientation.z = std::sin(stop.yaw / 2);
  goal.pose.orientation.w = std::cos(stop.yaw / 2);
  setOutput("goal", goal);
  setOutput("error_msg", std::string());
  return BT::NodeStatus::SUCCESS;
}

BT::NodeStatus StandOffPose::fail(const std::string & cause)
{
  RCLCPP_WARN(rclcpp::get_logger("lisa_ros_bt"), "%s: %s", name().c_str(), cause.c_str());
  setOutput("error_msg", cause);
  return BT::NodeStatus::FAILURE;
}

}  // namespace lisa_ros_bt
