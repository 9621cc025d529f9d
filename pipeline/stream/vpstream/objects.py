"""S3 as the job uses it: get, put-if-absent, compare-and-swap, list. Every failure but a plain "no" is `Interrupted`."""

import json
from dataclasses import dataclass

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from .errors import Interrupted

_clients = {}


@dataclass(frozen=True)
class Store:
    """Where objects are; picklable, so that tasks carry it to the workers. Credentials come from the process's own environment or IMDS."""

    endpoint: str
    region: str
    results: str
    cluster: str

    def _client(self):
        where = (self.endpoint, self.region)
        if where not in _clients:
            _clients[where] = boto3.session.Session().client(
                "s3",
                endpoint_url=self.endpoint or None,
                region_name=self.region,
                config=Config(
                    s3={"addressing_style": "path"},
                    connect_timeout=3,
                    read_timeout=30,
                    retries={"max_attempts": 4, "mode": "standard"},
                    max_pool_connections=16,
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
        return _clients[where]

    def _call(self, name, absent, **arguments):
        """Calls S3; answers in `absent` (codes or HTTP statuses) give None."""
        try:
            return getattr(self._client(), name)(**arguments)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code in absent or status in absent:
                return None
            raise Interrupted(f"s3 {name} {arguments.get('Key', '')}: {code}") from error
        except NoCredentialsError as error:
            # A client looks for credentials once, when it is made: one slow answer of the metadata service would leave it without any for ever.
            _clients.pop((self.endpoint, self.region), None)
            raise Interrupted(f"s3 {name} {arguments.get('Key', '')}: {error}") from error
        except BotoCoreError as error:
            raise Interrupted(f"s3 {name} {arguments.get('Key', '')}: {error}") from error

    def _read(self, answer, key):
        try:
            return answer["Body"].read()
        except Exception as error:  # a connection lost while reading surfaces as several types
            raise Interrupted(f"s3 read {key}: {error}") from error

    def get(self, key, bucket=None):
        """The object's bytes, or None when there is none."""
        answer = self._call("get_object", {404}, Bucket=bucket or self.results, Key=key)
        return None if answer is None else self._read(answer, key)

    def get_json(self, key, bucket=None):
        """(value, ETag), or (None, None) when absent. A value that is not JSON is (None, ETag)."""
        answer = self._call("get_object", {404}, Bucket=bucket or self.results, Key=key)
        if answer is None:
            return None, None
        try:
            return json.loads(self._read(answer, key)), answer["ETag"]
        except ValueError:
            return None, answer["ETag"]

    def download(self, key, path):
        """Streams an object into a file; False when there is none."""
        answer = self._call("get_object", {404}, Bucket=self.results, Key=key)
        if answer is None:
            return False
        try:
            with open(path, "wb") as out:
                for chunk in answer["Body"].iter_chunks(1 << 20):
                    out.write(chunk)
        except Exception as error:
            raise Interrupted(f"s3 read {key}: {error}") from error
        return True

    def exists(self, key):
        return self._call("head_object", {404}, Bucket=self.results, Key=key) is not None

    def put_if_absent(self, key, body, content_type="application/octet-stream"):
        """True when this call created it, False when it was there."""
        return (
            self._call("put_object", {412, 409}, Bucket=self.results, Key=key, Body=body, ContentType=content_type, IfNoneMatch="*")
            is not None
        )

    def swap(self, key, value, etag):
        """Writes JSON if the object still has `etag` (None: if absent). Returns the new ETag, or None when it moved."""
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        answer = self._call(
            "put_object", {412, 409, 404}, Bucket=self.results, Key=key, Body=to_json(value), ContentType="application/json", **condition
        )
        return None if answer is None else answer["ETag"]

    def delete(self, key):
        self._call("delete_object", {404}, Bucket=self.results, Key=key)

    def keys(self, prefix):
        """All keys below a prefix, with sizes."""
        found, token = {}, None
        while True:
            extra = {"ContinuationToken": token} if token else {}
            page = self._call("list_objects_v2", set(), Bucket=self.results, Prefix=prefix, **extra)
            found.update((entry["Key"], entry["Size"]) for entry in page.get("Contents", ()))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return found

    def folders(self, prefix):
        """The names directly below a prefix that have keys below them."""
        names, token = set(), None
        while True:
            extra = {"ContinuationToken": token} if token else {}
            page = self._call("list_objects_v2", set(), Bucket=self.results, Prefix=prefix, Delimiter="/", **extra)
            names.update(entry["Prefix"][len(prefix) :].rstrip("/") for entry in page.get("CommonPrefixes", ()))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated") or not token:
                return names


def to_json(value):
    """One form of JSON, so that equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
