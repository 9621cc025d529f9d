"""The streaming job: segments from Kafka, ffmpeg on the workers, results on S3."""
