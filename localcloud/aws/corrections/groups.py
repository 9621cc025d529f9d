"""Auto Scaling: a launch goes to the zone with fewest instances of the group, a removal comes from the one with most, Unhealthy is replaced."""

from collections import Counter

from moto.autoscaling.models import (
    ASG_NAME_TAG,
    AutoScalingBackend,
    FakeAutoScalingGroup,
    InstanceState,
    TerminateInstanceActivity,
)

_set_desired = FakeAutoScalingGroup.set_desired_capacity
_set_health = AutoScalingBackend.set_instance_health


def _places(group):
    """(zone, subnet id or None) in the order of the group's configuration."""
    if group.vpc_zone_identifier:
        wanted = [part.strip() for part in group.vpc_zone_identifier.split(",")]
        subnets = {s.id: s for s in group.ec2_backend.describe_subnets(subnet_ids=wanted)}
        return [(subnets[one].availability_zone, one) for one in wanted]
    return [(zone, None) for zone in group.availability_zones]


def _launch(group, count_needed, propagated_tags):
    tags = {**propagated_tags, **group.instance_tags, ASG_NAME_TAG: group.name}
    places = _places(group)
    template = None
    if group.ec2_launch_template:
        template = {"LaunchTemplateId": group.ec2_launch_template.id, "Version": group.launch_template_version}
    for _ in range(count_needed):
        held = Counter(state.instance._placement.zone for state in group.instance_states)
        zone, subnet = min(places, key=lambda place: held[place[0]])
        reservation = group.ec2_backend.run_instances(
            group.image_id,
            1,
            group.user_data,
            group.security_groups,
            instance_type=group.instance_type,
            tags={"instance": dict(tags)},
            placement=zone,
            launch_config=group.launch_config,
            launch_template=template,
            is_instance_type_default=False,
            associate_public_ip=False,
            subnet_id=subnet,
        )
        for instance in reservation.instances:
            instance.autoscaling_group = group
            group.instance_states.append(InstanceState(instance, protected_from_scale_in=group.new_instances_protected_from_scale_in))


def _set_desired_balanced(group, new_capacity):
    """moto removes the first unprotected ones of its list: put the oldest of the fullest zones there."""
    left, first = list(group.instance_states), []
    while left:
        held = Counter(state.instance._placement.zone for state in left)
        chosen = max(left, key=lambda state: (held[state.instance._placement.zone], -left.index(state)))
        left.remove(chosen)
        first.append(chosen)
    launch_order = list(group.instance_states)
    group.instance_states = first
    _set_desired(group, new_capacity)
    known = {id(state): index for index, state in enumerate(launch_order)}
    group.instance_states = sorted(group.instance_states, key=lambda state: known.get(id(state), len(known)))


def _set_health_and_replace(backend, instance_id, health_status):
    _set_health(backend, instance_id, health_status)
    if health_status == "Unhealthy":
        backend.ec2_backend.terminate_instances([instance_id])
        backend.notify_terminate_instances([instance_id])


def _terminate(backend, instance_id, should_decrement):
    """As TerminateInstances, but it keeps the group's tag on the instance and may shrink the group."""
    from moto.autoscaling.exceptions import ValidationError

    group = next((g for g in backend.autoscaling_groups.values() if any(s.instance.id == instance_id for s in g.instance_states)), None)
    if group is None:
        raise ValidationError(f"Instance Id not found - No managed instance found for instance ID: {instance_id}")
    instance = next(s.instance for s in group.instance_states if s.instance.id == instance_id)
    original = group.desired_capacity
    if should_decrement:
        group.desired_capacity = original - 1
    group.instance_states = [s for s in group.instance_states if s.instance.id != instance_id]
    backend.ec2_backend.terminate_instances([instance_id])
    group.set_desired_capacity(group.desired_capacity)
    return TerminateInstanceActivity(instance, original)


def apply() -> None:
    FakeAutoScalingGroup.replace_autoscaling_group_instances = _launch
    FakeAutoScalingGroup.set_desired_capacity = _set_desired_balanced
    AutoScalingBackend.set_instance_health = _set_health_and_replace
    AutoScalingBackend.terminate_instance = _terminate
