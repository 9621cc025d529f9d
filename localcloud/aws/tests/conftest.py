"""One launcher a test session, on a free network of its own; every test makes its own VPC."""

import base64
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import boto3
import botocore.config
import pytest

LAUNCHER = pathlib.Path(__file__).resolve().parent.parent / "launcher.py"


def free_network() -> int:
    for number in range(200, 254):
        with socket.socket() as probe:
            try:
                probe.bind((f"127.{number}.0.2", 5000))
                return number
            except OSError:
                continue
    raise RuntimeError("no free network between 127.200 and 127.253")


class Region:
    """A client's view of the launcher under test."""

    def __init__(self, network: int, state: pathlib.Path):
        self.network, self.state = network, state
        self.url = f"http://127.{network}.0.2:5000"
        self.made = 0

    def client(self, service: str):
        return boto3.client(
            service,
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=botocore.config.Config(retries={"total_max_attempts": 1}),
        )

    def instances(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/_keeper/instances") as answer:
            return {one["id"]: one for one in json.load(answer)["instances"]}

    def confirm(self, instance_id: str) -> int:
        request = urllib.request.Request(f"{self.url}/_keeper/instances/{instance_id}/terminated", method="POST")
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    def group(self, size: int, zones: int = 3) -> "Group":
        self.made += 1
        return Group(self, f"group-{self.made}", self.made, size, zones)


class Group:
    """An Auto Scaling Group over subnets of its own."""

    def __init__(self, region: Region, name: str, serial: int, size: int, zones: int):
        self.region, self.name = region, name
        self.ec2, self.autoscaling = region.client("ec2"), region.client("autoscaling")
        vpc = self.ec2.create_vpc(CidrBlock=f"127.{region.network}.0.0/16")["Vpc"]["VpcId"]
        self.subnets = [
            self.ec2.create_subnet(VpcId=vpc, CidrBlock=f"127.{region.network}.{zone}.0/24", AvailabilityZone=f"us-east-1{'abc'[zone - 1]}")["Subnet"]["SubnetId"]
            for zone in range(1, zones + 1)
        ]
        self.image = self.ec2.register_image(Name=f"image-{serial}", RootDeviceName="/dev/xvda")["ImageId"]
        self.template = self.ec2.create_launch_template(
            LaunchTemplateName=f"template-{serial}",
            LaunchTemplateData={
                "ImageId": self.image,
                "InstanceType": "t3.small",
                "UserData": base64.b64encode(b"first").decode(),
                "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "vp:cluster", "Value": "dev"}]}],
            },
        )["LaunchTemplate"]["LaunchTemplateId"]
        self.autoscaling.create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=0,
            MaxSize=20,
            DesiredCapacity=size,
            LaunchTemplate={"LaunchTemplateId": self.template, "Version": "$Latest"},
            VPCZoneIdentifier=",".join(self.subnets),
        )

    def members(self) -> list:
        """Ids of the group's instances by Auto Scaling."""
        described = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])
        return [one["InstanceId"] for one in described["AutoScalingGroups"][0]["Instances"]]

    def describe(self, *ids: str) -> list:
        """DescribeInstances of these ids, else of the whole group."""
        described = self.ec2.describe_instances(InstanceIds=list(ids) or self.members())
        return [one for reservation in described["Reservations"] for one in reservation["Instances"]]


@pytest.fixture(scope="session")
def region(tmp_path_factory):
    state = tmp_path_factory.mktemp("region")
    network = free_network()
    environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true"}
    with open(state / "launcher.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(LAUNCHER), "--address", f"127.{network}.0.2", "--state", str(state), "--network", str(network)],
            stdout=log,
            stderr=log,
            env=environment,
        )
    region = Region(network, state)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                region.instances()
                break
            except OSError:
                assert process.poll() is None, (state / "launcher.log").read_text()
                assert time.monotonic() < deadline, (state / "launcher.log").read_text()
                time.sleep(0.05)
        yield region
    finally:
        process.kill()
        process.wait()
