"""A small real cluster for the end-to-end tests: ZooKeeper, one Kafka broker, Spark master and worker, versitygw.

Everything runs on addresses 127.N.0.x with its state in one folder, and ends with `stop`.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request

import boto3
from botocore.config import Config

STREAM = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def until(condition, within_s=180.0, what="condition"):
    """Polls a condition; its first true value, or AssertionError."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s} s: {what}")


def listening(address, port):
    def ask():
        try:
            socket.create_connection((address, port), timeout=1).close()
            return True
        except OSError:
            return False

    return ask


class Region:
    def __init__(self, root, network=34):
        self.root, self.net = str(root), f"127.{network}.0"
        self.parts = os.environ["VP_COMPONENTS"]
        self.python = os.path.join(self.parts, "spark/bin/python")
        self.s3 = f"http://{self.net}.2:7070"
        self.env = {
            "PATH": os.environ["PATH"], "HOME": self.root, "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local-secret",
            "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "PYSPARK_PYTHON": self.python,
            "TMPDIR": self.path("tmp"), "JDK_JAVA_OPTIONS": f"-Djava.io.tmpdir={self.path('tmp')} -XX:+PerfDisableSharedMem",
        }  # fmt: skip
        self.running = {}

    def spawn(self, name, command, **env):
        log = open(os.path.join(self.root, f"{name}.log"), "ab")
        process = subprocess.Popen(command, cwd=self.root, env={**self.env, **env}, stdout=log, stderr=log, start_new_session=True)
        log.close()
        self.running[name] = process
        return process

    def path(self, *names):
        path = os.path.join(self.root, *names)
        os.makedirs(path, exist_ok=True)
        return path

    def start(self):
        versitygw = [os.path.join(self.parts, "bin/versitygw"), "--port", f"{self.net}.2:7070", "--access", "local", "--secret", "local-secret"]
        self.spawn("s3", [*versitygw, "--quiet", "posix", self.path("s3")])
        zoo, kafka = os.path.join(self.root, "zoo.cfg"), os.path.join(self.root, "kafka.properties")
        with open(zoo, "w") as out:
            out.write(f"tickTime=1000\ndataDir={self.path('zk')}\nclientPort=2181\nclientPortAddress={self.net}.3\nadmin.enableServer=false\n")
        with open(kafka, "w") as out:
            out.write(f"broker.id=1\nzookeeper.connect={self.net}.3:2181\nlisteners=PLAINTEXT://{self.net}.4:9092\nlog.dirs={self.path('kafka')}\n")
            out.write("offsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\nauto.create.topics.enable=false\n")
        self.spawn("zookeeper", ["java", "-Xmx96m", "-cp", f"{self.parts}/zookeeper/lib/*", "org.apache.zookeeper.server.ZooKeeperServerMain", zoo])
        until(listening(f"{self.net}.3", 2181), what="zookeeper")
        self.spawn("kafka", ["java", "-Xmx320m", "-cp", f"{self.parts}/kafka/lib/*", "kafka.Kafka", kafka])
        home = subprocess.check_output([self.python, "-c", "import pyspark,os;print(os.path.dirname(pyspark.__file__))"], text=True).strip()
        self.spark_class = os.path.join(home, "bin/spark-class")
        master = f"{self.net}.5"
        self.spawn(
            "master",
            [self.spark_class, "org.apache.spark.deploy.master.Master", "--host", master, "--port", "7077", "--webui-port", "8080"],
            SPARK_LOCAL_IP=master,
            SPARK_DAEMON_MEMORY="256m",
            SPARK_PUBLIC_DNS=master,
        )
        until(lambda: listening(master, 7077)() and listening(master, 8080)(), what="spark master")
        self.worker(6)
        until(listening(f"{self.net}.2", 7070), what="s3")
        until(listening(f"{self.net}.4", 9092), what="kafka")
        self.client = boto3.client(
            "s3",
            endpoint_url=self.s3,
            region_name="us-east-1",
            aws_access_key_id="local",
            aws_secret_access_key="local-secret",
            config=Config(s3={"addressing_style": "path"}),
        )
        for bucket in ("uploads", "results", "cluster"):
            self.client.create_bucket(Bucket=bucket)
        self.client.put_object(Bucket="cluster", Key="kafka/brokers.json", Body=json.dumps({"brokers": [f"{self.net}.4:9092"], "revision": 1}))
        until(lambda: self.master_state().get("aliveworkers"), what="spark worker")

    def worker(self, last, cores=2):
        address = f"{self.net}.{last}"
        worker = [self.spark_class, "org.apache.spark.deploy.worker.Worker", "--host", address, "--webui-port", "8081"]
        sizes = ["--cores", str(cores), "--memory", "1g", "--work-dir", self.path(f"worker-{last}")]
        self.spawn(f"worker-{last}", [*worker, *sizes, f"spark://{self.net}.5:7077"], SPARK_LOCAL_IP=address, SPARK_DAEMON_MEMORY="192m")

    def master_state(self):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.net}.5:8080/json/", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return {}  # it listens before it answers

    def driver(self, generation, kill=True):
        """Starts a driver of a generation on 127.N.0.(10 + generation)."""
        address = f"{self.net}.{10 + generation}"
        return self.spawn(
            f"driver-{generation}", [self.python, os.path.join(STREAM, "main.py")], VP_GENERATION=str(generation), VP_INSTANCE_ID=f"i-{generation}",
            VP_SPARK_MASTER=f"spark://{self.net}.5:7077", VP_SPARK_MASTER_UIS=f"{self.net}.5:8080" if kill else "", VP_NODE_ADDRESS=address,
            VP_KAFKA_REPLICATION="1", VP_SPARK_JARS=f"{self.parts}/spark/jars", VP_RUN_DIR=self.path(f"run-{generation}"), AWS_ENDPOINT_URL_S3=self.s3,
            VP_RESULTS_BUCKET="results", VP_CLUSTER_BUCKET="cluster", SPARK_LOCAL_IP=address,
        )  # fmt: skip

    def progress(self, generation):
        try:
            with open(os.path.join(self.root, f"run-{generation}", "progress.json")) as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def log(self, name):
        """A driver's JSON log lines."""
        with open(os.path.join(self.root, f"{name}.log"), errors="replace") as file:
            return [json.loads(line) for line in file if line.startswith('{"time_unix_ms"')]

    def object(self, key):
        try:
            return self.client.get_object(Bucket="results", Key=key)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None

    def result(self, job):
        body = self.object(f"jobs/{job}/result.json")
        return json.loads(body) if body else None

    def produce(self, records):
        """Records are (key, value, headers)."""
        from kafka import KafkaProducer

        producer = KafkaProducer(bootstrap_servers=f"{self.net}.4:9092", acks="all", max_request_size=2_000_000)
        sent = [producer.send("video-segments", key=key, value=value, headers=headers) for key, value, headers in records]
        producer.flush()
        for future in sent:
            future.get(timeout=30)
        producer.close()

    def submit(self, plan, data, part_bytes=200_000):
        """All records of a job in ingest's order: segments, then the plan, then the end."""
        import hashlib

        job, records = plan["job"], []
        for segment, body in data.items():
            pieces = [body[at : at + part_bytes] for at in range(0, len(body), part_bytes)]
            for part, piece in enumerate(pieces):
                fields = {
                    "version": 1,
                    "kind": "audio" if segment == "audio" else "video",
                    "job": job,
                    "segment": segment,
                    "part": part,
                    "parts": len(pieces),
                    "bytes": len(body),
                    "sha256": hashlib.sha256(body).hexdigest(),
                }
                records.append((f"{job}/{segment}".encode(), piece, [(name, str(value).encode()) for name, value in fields.items()]))
        self.produce(records)
        self.client.put_object(Bucket="results", Key=f"jobs/{job}/plan.json", Body=json.dumps(plan))
        fields = {"version": 1, "kind": "end", "job": job}
        self.produce([(f"{job}/end".encode(), json.dumps({"job": job, "plan_sha256": ""}).encode(), [(name, str(value).encode()) for name, value in fields.items()])])

    def signal(self, name, number):
        """To a process and all it started."""
        os.killpg(self.running[name].pid, number)

    def stop(self):
        for process in reversed(self.running.values()):
            for number in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    break
            process.wait()
        # Executors are children of the worker's session; none may be left, and no port may be held.
        until(lambda: not listening(f"{self.net}.5", 7077)(), what="the master to be gone")
