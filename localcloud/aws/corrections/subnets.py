"""Addresses come from the subnet, from .20 up (the lower ones are for network interfaces), and no address is ever given twice."""

import ipaddress

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.subnets import Subnet

FIRST_HOST = 20


class InsufficientFreeAddressesInSubnet(EC2ClientError):
    code = "InsufficientFreeAddressesInSubnet"

    def __init__(self, subnet_id: str):
        super().__init__(self.code, f"The subnet {subnet_id} has no free address left; addresses are not reused.")


def _next_address(subnet, instance) -> str:
    network = ipaddress.ip_network(subnet.cidr_block)
    offset = getattr(subnet, "next_host", FIRST_HOST)
    while offset < network.num_addresses - 1:
        address = str(network.network_address + offset)
        offset += 1
        if address not in subnet._subnet_ips:
            subnet.next_host = offset
            subnet._subnet_ips[address] = instance
            return address
    raise InsufficientFreeAddressesInSubnet(subnet.id)


def apply() -> None:
    Subnet.get_available_subnet_ip = _next_address
