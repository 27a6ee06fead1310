// SPDX-License-Identifier: Apache-2.0
// StandOffPose: the pose of a robot base that stops before an object and faces it.
#ifndef STAND_OFF_POSE_HPP_
#define STAND_OFF_POSE_HPP_

#include <string>

#include <behaviortree_cpp/action_node.h>
#include <geometry_msgs/msg/pose_stamped.hpp>
#include <nav2_behavior_tree/bt_utils.hpp>  // PoseStamped from and to text

namespace lisa_ros_bt
{

/// SUCCESS with the pose in `goal`, FAILURE with the cause in `error_msg`.
///
/// The object is transformed at the stamp of its image, the robot is where it is now.
class StandOffPose : public BT::SyncActionNode
{
public:
  using BT::SyncActionNode::SyncActionNode;

  static BT::PortsList providedPorts()
  {
    return {
      BT::InputPort<geometry_msgs::msg::PoseStamped>("object", "output of LisaFind"),
      BT::InputPort<double>("distance", 0.6, "from the object's centroid to the robot's base [m]"),
      BT::InputPort<std::string>("global_frame", "map", "TF frame of the goal, z up"),
      BT::InputPort<std::string>("robot_base_frame", "base_link", "TF frame of the robot"),
      BT::OutputPort<geometry_msgs::msg::PoseStamped>("goal", "on the floor, facing the object [m]"),
      BT::OutputPort<std::string>("error_msg", "why the node failed; empty after SUCCESS")};
  }

  BT::NodeStatus tick() override;

private:
  BT::NodeStatus fail(const std::string & cause);
};

}  // namespace lisa_ros_bt

#endif  // STAND_OFF_POSE_HPP_
