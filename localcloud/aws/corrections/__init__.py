"""Where moto differs from AWS in ways that the cluster's safety rests on, one file a difference. `apply` is called before any request."""

from . import groups, hooks, lifecycle, refresh, subnets, templates, volumes


def apply() -> None:
    """Changes moto's classes in this process."""
    for correction in (subnets, lifecycle, volumes, templates, groups, hooks, refresh):
        correction.apply()
