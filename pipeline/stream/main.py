"""The streaming job's driver: takes its generation's place, then takes in records and processes jobs until it ends or is fenced.

Exit codes: 0 asked to stop, 1 an error that a restart may mend, 2 wrong settings, 3 fenced by a higher generation.
"""

import json
import os
import signal
import sys
import threading
import time

from vpstream import cluster, fence, intake, progress, settings
from vpstream.errors import Fenced, Interrupted
from vpstream.processor import Processor

QUERY_RESTARTS = 5
QUERY_WINDOW_S = 300.0


def log(message, **fields):
    """One JSON line on stderr; messages are constants."""
    line = {"time_unix_ms": time.time_ns() // 1_000_000, "message": message, **fields}
    sys.stderr.write(json.dumps(line, default=str) + "\n")
    sys.stderr.flush()


def patiently(stopping, work, what):
    """Repeats work that answers None or raises Interrupted until it answers; Fenced passes."""
    said = 0.0
    while not stopping.is_set():
        cause = "not there yet"
        try:
            value = work()
            if value is not None:
                return value
        except Interrupted as error:
            cause = str(error)
        if time.monotonic() - said > 10:
            said = time.monotonic()
            log("waiting", what=what, cause=cause)
        stopping.wait(0.5)
    raise SystemExit(0)


def main():
    given = settings.parse(sys.argv[1:])
    stopping = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.set())
    folder = patiently(stopping, lambda: fence.take_folder(given.store, given.generation, given.holder), "s3")
    log("generation taken", generation=given.generation, folder=folder)
    patiently(stopping, lambda: cluster.kill_older(given.master_uis, log) or None, "older application to end")
    spark = cluster.session(given, cluster.package_zip(os.path.dirname(os.path.abspath(__file__)), given.run_dir))
    log("spark session started", app=spark.sparkContext.applicationId)

    def find_brokers():
        addresses = cluster.brokers(given)
        if not addresses or not cluster.reachable(addresses):
            return None
        # Names outlive moves: whoever reads from Kafka later, on whatever worker, resolves them then.
        return given.broker_names or addresses

    def make_topic():
        addresses = patiently(stopping, find_brokers, "kafka")
        try:
            cluster.ensure_topic(spark, addresses, given.replication)
        except Exception as error:  # py4j wraps whatever Kafka says: too few brokers yet, no controller, time-outs
            raise Interrupted(str(error).strip().splitlines()[0][:300]) from error
        return addresses

    batch = [-1]
    scala = spark.sparkContext._jsc.sc()
    processor = Processor(spark.sparkContext, given.store, given.generation, lambda: scala.defaultParallelism(), log)

    def on_batch(number, ended, counts):
        batch[0] = number
        if counts.get("malformed"):
            log("malformed records skipped", batch=number, count=counts["malformed"])
        log("batch taken", batch=number, **counts)
        processor.hint(ended)

    def take_in():
        """Keeps the query running; Kafka may be away at any time, and what is whole already is processed meanwhile."""
        restarts = []
        while True:
            addresses = patiently(stopping, make_topic, "kafka")
            query = intake.start(spark, given, addresses, folder, on_batch)
            log("query started", brokers=addresses)
            try:
                query.awaitTermination()
            except Exception as error:  # the query's own failure; its cause is logged and it starts again from its checkpoint
                log("query ended", cause=str(error)[:500])
            now = time.monotonic()
            restarts = [at for at in restarts if now - at < QUERY_WINDOW_S] + [now]
            if len(restarts) > QUERY_RESTARTS:
                raise RuntimeError("the query ends again and again")

    broken = []

    def guarded():
        try:
            take_in()
        except BaseException as error:  # noqa: BLE001  handed to the main thread, which ends the process
            broken.append(error)
            processor.wake.set()

    threading.Thread(target=guarded, name="intake", daemon=True).start()
    while not stopping.is_set():
        processor.wake.clear()
        try:
            processor.step(time.monotonic())
        except Interrupted as error:
            log("s3 is away", cause=str(error))
            stopping.wait(0.5)
        if stopping.is_set():
            break
        if broken:
            raise broken[0]
        if scala.isStopped():
            log("spark application is gone")
            return 1
        progress.write(given.progress, given.generation, batch[0], len(processor.jobs))
        processor.wake.wait(0.5)
    log("stopping")
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except Fenced as error:
        log("fenced by a higher generation", cause=str(error))
        code = 3
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except Exception as error:  # the JVM gone or a defect: said, then the agent starts us again
        log("driver ends", cause=f"{type(error).__name__}: {error}"[:2000])
    os._exit(code)  # at once: threads that wait for Spark must not keep a fenced driver alive
