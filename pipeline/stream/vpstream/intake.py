"""The Structured Streaming query: records of the topic become whole segments on S3, batch by batch, bounded.

A batch's offsets are committed only after its segments and parts are on S3; a batch that is done again writes the same
objects again, which is harmless. No bytes are state.
"""

from .cluster import TOPIC
from .segments import take


def start(spark, settings, addresses, folder, on_batch):
    """Starts the query with its checkpoint under `folder`; `on_batch(batch, ended jobs, counts)` runs after each batch's writes."""
    store = settings.store

    def tasks(rows):
        ended, counts = take(store, ((row[0], row[1], [(header[0], header[1]) for header in row[2] or ()]) for row in rows))
        yield ended, counts

    def batch(frame, number):
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", "intake")
        ended, total = set(), {}
        for jobs, counts in frame.select("key", "value", "headers").rdd.mapPartitions(tasks).collect():
            ended.update(jobs)
            for name, value in counts.items():
                total[name] = total.get(name, 0) + value
        on_batch(number, ended, total)

    source = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", addresses)
        .option("subscribe", TOPIC)
        .option("includeHeaders", "true")
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", str(settings.offsets_per_trigger))
        .option("failOnDataLoss", "false")
        .option("kafka.max.partition.fetch.bytes", str(4 * 1024 * 1024))
        .load()
    )
    return (
        source.writeStream.foreachBatch(batch)
        .option("checkpointLocation", f"s3a://{store.results}/{folder}q")
        .queryName(f"intake-{settings.generation}")
        .start()
    )
