"""Settings of the driver, from the environment (roles/stream/role.yaml) with flags for a person; checked once."""

import argparse
import os
from dataclasses import dataclass

from .objects import Store


@dataclass(frozen=True)
class Settings:
    """`brokers` is empty when they are read from the cluster bucket; `broker_names` is what JVMs are given instead; `jars` is a folder; times in seconds."""

    generation: int
    holder: str
    master: str
    master_uis: tuple
    address: str
    brokers: str
    broker_names: str
    replication: int
    jars: str
    python: str
    run_dir: str
    progress: str
    cores_max: int
    executor_memory_mib: int
    driver_memory_mib: int
    offsets_per_trigger: int
    imds: bool
    store: Store


def parse(arguments, env=os.environ):
    """Raises SystemExit with a sentence when something is missing or wrong."""
    parser = argparse.ArgumentParser(prog="vp-stream", description="the streaming job's driver")

    def option(flag, variable, default=None, kind=str):
        value = env.get(variable) or default
        parser.add_argument(flag, default=value, type=kind, required=value is None, help=f"default: ${variable}")

    option("--generation", "VP_GENERATION", kind=int)
    option("--holder", "VP_INSTANCE_ID", "unknown")
    option("--master", "VP_SPARK_MASTER")
    option("--master-uis", "VP_SPARK_MASTER_UIS", "")
    option("--address", "VP_NODE_ADDRESS")
    option("--brokers", "VP_KAFKA_BROKERS", "")
    option("--broker-names", "VP_KAFKA_BROKER_NAMES", "")
    option("--replication", "VP_KAFKA_REPLICATION", "3", int)
    option("--jars", "VP_SPARK_JARS")
    option("--python", "PYSPARK_PYTHON")
    option("--run-dir", "VP_RUN_DIR")
    option("--s3-endpoint", "AWS_ENDPOINT_URL_S3")
    option("--region", "AWS_REGION", "us-east-1")
    option("--results", "VP_RESULTS_BUCKET")
    option("--cluster-bucket", "VP_CLUSTER_BUCKET")
    option("--cores-max", "VP_SPARK_CORES_MAX", "16", int)
    option("--executor-memory-mib", "VP_SPARK_EXECUTOR_MEMORY_MIB", "512", int)
    option("--driver-memory-mib", "VP_SPARK_DRIVER_MEMORY_MIB", "512", int)
    option("--offsets-per-trigger", "VP_OFFSETS_PER_TRIGGER", "64", int)
    given = parser.parse_args(arguments)
    if not 0 < given.generation < 2**63:
        parser.error("--generation must be a positive number")
    for name in ("cores_max", "replication", "executor_memory_mib", "driver_memory_mib", "offsets_per_trigger"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not os.path.isdir(given.run_dir):
        parser.error(f"--run-dir {given.run_dir!r} is not a folder")
    if not os.path.isdir(given.jars):
        parser.error(f"--jars {given.jars!r} is not a folder")
    holder = "".join(letter for letter in given.holder if letter.isalnum() or letter in "-._")
    return Settings(
        given.generation, holder, given.master, tuple(filter(None, given.master_uis.split(","))), given.address, given.brokers,
        given.broker_names, given.replication, given.jars, given.python, given.run_dir, os.path.join(given.run_dir, "progress.json"), given.cores_max,
        given.executor_memory_mib, given.driver_memory_mib, given.offsets_per_trigger, not env.get("AWS_ACCESS_KEY_ID"),
        Store(given.s3_endpoint, given.region, given.results, given.cluster_bucket),
    )  # fmt: skip
