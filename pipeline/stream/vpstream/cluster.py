"""The driver's side of Spark and Kafka: kills an older application at the master, starts the session, makes the topic.

Master UIs are asked by address, because Python does not read the hosts file that the JVMs are given.
"""

import json
import os
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile

import pyspark
from pyspark import SparkConf
from pyspark.sql import SparkSession

APP = "vp-stream"
TOPIC = "video-segments"
PARTITIONS = 6


def _ask(ui, path, data=None):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(urllib.request.Request(f"http://{ui}{path}", data=data), timeout=5) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code in (301, 302, 303):  # the master answers a kill by sending the browser to its front page
            return b""
        raise


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def older_applications(uis):
    """[(ui, id)] of our applications that live at an alive master. Masters that do not answer are passed over."""
    found = []
    for ui in uis:
        try:
            state = json.loads(_ask(ui, "/json/"))
        except (OSError, ValueError):
            continue
        if state.get("status") == "ALIVE":
            found += [(ui, app["id"]) for app in state.get("activeapps", ()) if app.get("name") == APP]
    return found


def kill_older(uis, log, within_s=20.0):
    """Kills applications of older drivers, so that their cores are free and their tasks are gone. False when some still live."""
    deadline = time.monotonic() + within_s
    while True:
        alive = older_applications(uis)
        if not alive:
            return True
        if time.monotonic() > deadline:
            return False
        for ui, app in alive:
            log("older application killed at the master", app=app)
            try:
                _ask(ui, "/app/kill/", urllib.parse.urlencode({"id": app, "terminate": "true"}).encode())
            except OSError:
                continue
        time.sleep(0.3)


def package_zip(folder, run_dir):
    """The vpstream package as a zip for the workers."""
    path = os.path.join(run_dir, "vpstream.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in sorted(os.listdir(os.path.join(folder, "vpstream"))):
            if name.endswith(".py"):
                out.write(os.path.join(folder, "vpstream", name), f"vpstream/{name}")
    return path


def class_path(folder):
    """The jars of a folder that Spark does not bring itself: ours would stand before its own and break it (netty, slf4j)."""

    def artifact(name):
        return re.sub(r"(_2\.1\d)?-\d[\w.\-]*\.jar$", "", name)

    own = {artifact(name) for name in os.listdir(os.path.join(os.path.dirname(pyspark.__file__), "jars"))}
    wanted = [name for name in sorted(os.listdir(folder)) if name.endswith(".jar") and artifact(name) not in own]
    return ":".join(os.path.join(folder, name) for name in wanted)


def session(settings, package):
    """The Spark session; S3A only holds the query's checkpoint."""
    provider = (
        "software.amazon.awssdk.auth.credentials.InstanceProfileCredentialsProvider"
        if settings.imds
        else "software.amazon.awssdk.auth.credentials.EnvironmentVariableCredentialsProvider"
    )
    jars = class_path(settings.jars)
    pairs = {
        "spark.app.name": APP,
        "spark.master": settings.master,
        "spark.driver.host": settings.address,
        "spark.driver.bindAddress": settings.address,
        "spark.driver.memory": f"{settings.driver_memory_mib}m",
        "spark.executor.memory": f"{settings.executor_memory_mib}m",
        "spark.cores.max": str(settings.cores_max),
        "spark.driver.extraClassPath": jars,
        "spark.executor.extraClassPath": jars,
        "spark.submit.pyFiles": package,
        "spark.pyspark.python": settings.python,
        "spark.sql.warehouse.dir": os.path.join(settings.run_dir, "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.scheduler.mode": "FAIR",
        "spark.scheduler.minRegisteredResourcesRatio": "0",
        "spark.locality.wait": "0",
        "spark.task.maxFailures": "8",
        "spark.python.worker.reuse": "true",
        "spark.executor.heartbeatInterval": "3s",
        "spark.network.timeout": "30s",
        "spark.network.timeoutInterval": "10s",
        "spark.storage.decommission.enabled": "true",
        "spark.decommission.enabled": "true",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.streaming.minBatchesToRetain": "20",
        "spark.sql.streaming.pollingDelay": "200ms",
        # Hadoop asks neither TMPDIR nor Java where temporary files belong, and buffers each checkpoint there.
        "spark.hadoop.hadoop.tmp.dir": "${java.io.tmpdir}/hadoop",
        # By default found through the one above by a rule that a path with a space in it breaks.
        "spark.hadoop.fs.s3a.buffer.dir": "${java.io.tmpdir}/hadoop/s3a",
        "spark.hadoop.fs.s3a.endpoint": settings.store.endpoint,
        "spark.hadoop.fs.s3a.endpoint.region": settings.store.region,
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": str(settings.store.endpoint.startswith("https")).lower(),
        "spark.hadoop.fs.s3a.aws.credentials.provider": provider,
        "spark.hadoop.fs.s3a.change.detection.mode": "none",
        "spark.hadoop.fs.s3a.attempts.maximum": "5",
    }
    conf = SparkConf()
    for name, value in pairs.items():
        conf.set(name, value)
    return SparkSession.builder.config(conf=conf).getOrCreate()


def brokers(settings):
    """Addresses of the brokers, or None when nobody has published them yet."""
    if settings.brokers:
        return settings.brokers
    value, _ = settings.store.get_json("kafka/brokers.json", bucket=settings.store.cluster)
    names = value.get("brokers") if isinstance(value, dict) else None
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.\-]+:\d+", name) for name in names):
        return None
    return ",".join(names)


def reachable(addresses):
    """Whether any broker takes a connection."""
    for name in addresses.split(","):
        host, _, port = name.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2).close()
            return True
        except OSError:
            continue
    return False


def ensure_topic(spark, addresses, replication):
    """Makes the topic when it is not there; whoever comes first does. Errors other than "exists" surface as Py4JJavaError."""
    jvm = spark._jvm
    given = jvm.java.util.Properties()
    given.setProperty("bootstrap.servers", addresses)
    given.setProperty("request.timeout.ms", "10000")
    given.setProperty("default.api.timeout.ms", "20000")
    admin = jvm.org.apache.kafka.clients.admin.AdminClient.create(given)
    try:
        if TOPIC in set(admin.listTopics().names().get()):
            return
        # A Short cannot be passed through py4j: Java makes it from text.
        topic = jvm.org.apache.kafka.clients.admin.NewTopic(TOPIC, PARTITIONS, jvm.java.lang.Short.valueOf(str(replication)))
        topic.configs(spark._jvm.java.util.HashMap({"min.insync.replicas": str(min(2, replication))}))
        wanted = jvm.java.util.ArrayList()
        wanted.add(topic)
        try:
            admin.createTopics(wanted).all().get()
        except Exception as error:
            if "TopicExistsException" not in str(error):
                raise
    finally:
        admin.close()
