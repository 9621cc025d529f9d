"""Each correction of moto, over HTTP with boto3, as any client sees it."""

import base64
import ipaddress
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import botocore.exceptions
import pytest
from cryptography.hazmat.primitives import serialization


def code(error) -> str:
    return error.value.response["Error"]["Code"]


def test_terminated_is_shown_only_after_the_keeper_confirmed(region):
    group = region.group(1)
    (victim,) = group.members()
    answer = group.ec2.terminate_instances(InstanceIds=[victim])["TerminatingInstances"][0]
    assert answer["PreviousState"]["Name"] == "running"
    assert answer["CurrentState"]["Name"] == "shutting-down"
    assert group.describe(victim)[0]["State"] == {"Code": 32, "Name": "shutting-down"}
    assert region.instances()[victim]["state"] == "shutting-down"
    assert region.confirm(victim) == 200
    assert group.describe(victim)[0]["State"]["Name"] == "terminated"
    assert region.confirm(victim) == 200


def test_confirming_a_running_instance_is_refused(region):
    group = region.group(1)
    (running,) = group.members()
    assert region.confirm(running) == 409
    assert region.confirm("i-00000000000000000") == 404
    assert group.describe(running)[0]["State"]["Name"] == "running"


def test_terminating_twice_replaces_once(region):
    group = region.group(1)
    (victim,) = group.members()
    for _ in range(2):
        group.ec2.terminate_instances(InstanceIds=[victim])
    assert len(group.members()) == 1
    region.confirm(victim)
    group.ec2.terminate_instances(InstanceIds=[victim])
    assert group.describe(victim)[0]["State"]["Name"] == "terminated"
    assert len(group.members()) == 1


def test_a_group_is_balanced_over_its_zones_with_addresses_of_the_subnet_from_20(region):
    group = region.group(5)
    found = group.describe()
    assert sorted(Counter(one["Placement"]["AvailabilityZone"] for one in found).values()) == [1, 2, 2]
    for one in found:
        zone = "abc".index(one["Placement"]["AvailabilityZone"][-1]) + 1
        address = ipaddress.ip_address(one["PrivateIpAddress"])
        assert address in ipaddress.ip_network(f"127.{region.network}.{zone}.0/24")
        assert int(str(address).split(".")[3]) >= 20
        assert one["SubnetId"] == group.subnets[zone - 1]
    assert len({one["PrivateIpAddress"] for one in found}) == 5


def test_the_replacement_goes_to_the_zone_with_fewest_under_a_new_address(region):
    group = region.group(3)
    before = {one["InstanceId"]: one for one in group.describe()}
    used = {one["PrivateIpAddress"] for one in before.values()}
    for _ in range(3):
        victim = group.members()[1]
        zone = group.describe(victim)[0]["Placement"]["AvailabilityZone"]
        group.ec2.terminate_instances(InstanceIds=[victim])
        region.confirm(victim)
        new = [one for one in group.describe() if one["PrivateIpAddress"] not in used]
        assert len(new) == 1 and new[0]["Placement"]["AvailabilityZone"] == zone
        used.add(new[0]["PrivateIpAddress"])
    assert len(used) == 6


def test_scaling_in_takes_from_the_fullest_zone(region):
    group = region.group(5)
    group.autoscaling.set_desired_capacity(AutoScalingGroupName=group.name, DesiredCapacity=3)
    assert sorted(Counter(one["Placement"]["AvailabilityZone"] for one in group.describe()).values()) == [1, 1, 1]


def test_an_unhealthy_instance_is_terminated_and_replaced(region):
    group = region.group(2)
    victim = group.members()[0]
    group.autoscaling.set_instance_health(InstanceId=victim, HealthStatus="Unhealthy")
    assert group.describe(victim)[0]["State"]["Name"] == "shutting-down"
    assert victim not in group.members() and len(group.members()) == 2


def test_terminate_in_group_keeps_the_tag_and_decrements_when_asked(region):
    group = region.group(3)
    first, second, _ = group.members()
    group.autoscaling.terminate_instance_in_auto_scaling_group(InstanceId=first, ShouldDecrementDesiredCapacity=False)
    assert len(group.members()) == 3
    group.autoscaling.terminate_instance_in_auto_scaling_group(InstanceId=second, ShouldDecrementDesiredCapacity=True)
    assert len(group.members()) == 2
    assert {"Key": "aws:autoscaling:groupName", "Value": group.name} in group.describe(first)[0]["Tags"]
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.autoscaling.terminate_instance_in_auto_scaling_group(InstanceId=first, ShouldDecrementDesiredCapacity=True)
    assert code(error) == "ValidationError"


def test_a_new_template_version_with_user_data_launches(region):
    group = region.group(1)
    group.ec2.create_launch_template_version(
        LaunchTemplateId=group.template,
        SourceVersion="1",
        LaunchTemplateData={"UserData": base64.b64encode(b"second").decode()},
    )
    old = group.members()
    group.autoscaling.set_desired_capacity(AutoScalingGroupName=group.name, DesiredCapacity=2)
    (new,) = set(group.members()) - set(old)
    known = region.instances()
    assert base64.b64decode(known[new]["user_data"]) == b"second"
    assert base64.b64decode(known[old[0]]["user_data"]) == b"first"
    assert known[new]["image"] == group.image and known[new]["type"] == "t3.small"
    assert known[new]["tags"]["vp:cluster"] == "dev"
    attribute = group.ec2.describe_instance_attribute(InstanceId=new, Attribute="userData")
    assert base64.b64decode(attribute["UserData"]["Value"]) == b"second"


def test_instances_carry_the_tags_of_group_and_template(region):
    group = region.group(1)
    tags = {tag["Key"]: tag["Value"] for tag in group.describe()[0]["Tags"]}
    assert tags["aws:autoscaling:groupName"] == group.name and tags["vp:cluster"] == "dev"


def test_a_volume_follows_only_after_termination_is_confirmed(region):
    group = region.group(2, zones=1)
    first, second = group.members()
    volume = group.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]

    def state() -> tuple:
        described = group.ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]
        return described["State"], [one["InstanceId"] for one in described["Attachments"]]

    group.ec2.attach_volume(VolumeId=volume, InstanceId=first, Device="/dev/sdf")
    assert region.instances()[first]["volumes"] == [{"volume": volume, "device": "/dev/sdf"}]
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.ec2.attach_volume(VolumeId=volume, InstanceId=second, Device="/dev/sdf")
    assert code(error) == "VolumeInUse"
    group.ec2.terminate_instances(InstanceIds=[first])
    group.ec2.detach_volume(VolumeId=volume)
    assert state() == ("in-use", [first])
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.ec2.attach_volume(VolumeId=volume, InstanceId=second, Device="/dev/sdf")
    assert code(error) == "VolumeInUse"
    region.confirm(first)
    assert state() == ("available", [])
    group.ec2.attach_volume(VolumeId=volume, InstanceId=second, Device="/dev/sdf")
    assert state() == ("in-use", [second])
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.ec2.detach_volume(VolumeId=volume, InstanceId=first)
    assert code(error) == "InvalidAttachment.NotFound" and state() == ("in-use", [second])
    group.ec2.detach_volume(VolumeId=volume, InstanceId=second)
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.ec2.detach_volume(VolumeId=volume)
    assert code(error) == "IncorrectState"
    assert state() == ("available", [])


def test_a_volume_of_another_zone_or_for_an_ending_instance_is_refused(region):
    group = region.group(1, zones=1)
    (instance,) = group.members()
    far = group.ec2.create_volume(AvailabilityZone="us-east-1b", Size=1)["VolumeId"]
    near = group.ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.ec2.attach_volume(VolumeId=far, InstanceId=instance, Device="/dev/sdf")
    assert code(error) == "InvalidVolume.ZoneMismatch"
    group.ec2.terminate_instances(InstanceIds=[instance])
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.ec2.attach_volume(VolumeId=near, InstanceId=instance, Device="/dev/sdf")
    assert code(error) == "IncorrectState"


def test_a_lifecycle_action_is_completed(region):
    group = region.group(1)
    (instance,) = group.members()
    group.autoscaling.put_lifecycle_hook(AutoScalingGroupName=group.name, LifecycleHookName="drain", LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING")
    ask = {"AutoScalingGroupName": group.name, "LifecycleActionResult": "CONTINUE", "InstanceId": instance}
    answer = group.autoscaling.complete_lifecycle_action(LifecycleHookName="drain", **ask)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.autoscaling.complete_lifecycle_action(LifecycleHookName="nothing", **ask)
    assert code(error) == "ValidationError"


def test_an_instance_refresh_replaces_one_after_another(region):
    group = region.group(2)
    first = group.members()
    by_name = {"AutoScalingGroupName": group.name}
    refresh = group.autoscaling.start_instance_refresh(**by_name)["InstanceRefreshId"]
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.autoscaling.start_instance_refresh(**by_name)
    assert code(error) == "InstanceRefreshInProgress"

    def described():
        (one,) = group.autoscaling.describe_instance_refreshes(**by_name, InstanceRefreshIds=[refresh])["InstanceRefreshes"]
        return one["Status"], one["PercentageComplete"]

    for gone, victim in enumerate(first):
        assert described() == ("InProgress", 50 * gone)
        kept = [one["InstanceId"] for one in group.describe(*first) if one["State"]["Name"] == "running"]
        assert kept == first[gone + 1 :], "one at a time"
        assert region.confirm(victim) == 200
    assert described() == ("Successful", 100)
    assert len(group.members()) == 2 and not set(group.members()) & set(first)
    with pytest.raises(botocore.exceptions.ClientError) as error:
        group.autoscaling.cancel_instance_refresh(**by_name)
    assert code(error) == "ActiveInstanceRefreshNotFound"


def test_a_cancelled_instance_refresh_leaves_the_rest(region):
    group = region.group(2)
    first = group.members()
    refresh = group.autoscaling.start_instance_refresh(AutoScalingGroupName=group.name)["InstanceRefreshId"]
    assert group.autoscaling.cancel_instance_refresh(AutoScalingGroupName=group.name)["InstanceRefreshId"] == refresh
    assert region.confirm(first[0]) == 200
    assert first[1] in group.members()


def test_the_identity_key_is_an_rsa_2048_pair(region):
    private = serialization.load_der_private_key((region.state / "identity/private.pk8").read_bytes(), None)
    assert private.key_size == 2048
    expected = private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
    assert (region.state / "identity/public.der").read_bytes() == expected
    assert (region.state / "identity/private.pk8").stat().st_mode & 0o077 == 0


def test_many_clients_at_once_leave_a_whole_group(region):
    group = region.group(4)

    def replace(_):
        client = region.client("ec2")
        for victim in group.members()[:1]:
            client.terminate_instances(InstanceIds=[victim])
            region.confirm(victim)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(replace, range(24)))
    found = group.describe()
    assert len(found) == 4 and {one["State"]["Name"] for one in found} == {"running"}
    addresses = [one["address"] for one in region.instances().values() if one["tags"].get("aws:autoscaling:groupName") == group.name]
    assert len(addresses) == len(set(addresses))
