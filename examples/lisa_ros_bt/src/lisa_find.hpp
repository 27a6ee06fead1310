// SPDX-License-Identifier: Apache-2.0
// LisaFind: asks a lisa node for an object, through the action ~/segment.
#ifndef LISA_FIND_HPP_
#define LISA_FIND_HPP_

#include <string>

#include <geometry_msgs/msg/pose_stamped.hpp>
#include <lisa_ros/action/segment.hpp>
#include <nav2_behavior_tree/bt_action_node.hpp>

namespace lisa_ros_bt
{

/// SUCCESS with the first object of the answer, FAILURE with the cause in `error_msg`.
///
/// Halting the node cancels the goal; the model stops at its next token.
class LisaFind : public nav2_behavior_tree::BtActionNode<lisa_ros::action::Segment>
{
public:
  LisaFind(const std::string & tag, const BT::NodeConfiguration & configuration);

  static BT::PortsList providedPorts()
  {
    return providedBasicPorts({
      BT::InputPort<std::string>("query", "what to find"),
      BT::InputPort<std::string>("camera", "", "one of the node's cameras; may be empty if there is only one"),
      BT::InputPort<std::string>("dialogue", "", "goals with the same id form a dialogue; empty: no history"),
      BT::InputPort<double>("max_age", 0.0, "maximum age of the image [s]; 0: the node's max_image_age"),
      BT::OutputPort<geometry_msgs::msg::PoseStamped>(
        "object", "centroid and axes of the box of the first object, in the image's frame at its stamp [m]"),
      BT::OutputPort<std::string>("object_name", "what the answer calls the object, such as red mug"),
      BT::OutputPort<double>("score", "confidence of its mask, 0..1"),
      BT::OutputPort<std::string>("answer", "the answer in words"),
      BT::OutputPort<std::string>("error_msg", "why the node failed; empty after SUCCESS")});
  }

  void on_tick() override;
  BT::NodeStatus tick() override;
  BT::NodeStatus on_success() override;
  BT::NodeStatus on_aborted() override;
  BT::NodeStatus on_cancelled() override;

private:
  BT::NodeStatus fail(const std::string & cause);

  std::string error_;
};

}  // namespace lisa_ros_bt

#endif  // LISA_FIND_HPP_
