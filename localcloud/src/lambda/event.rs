//! Events as AWS shapes them: made from what the S3 server's webhook or a listing says.
//!
//! The S3 server sends keys as they are, entity tags in quotes and a bucket ARN with the key; functions get what AWS
//! would send: keys form-encoded, tags bare, a sequencer that grows.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// An object that was created.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Created {
    /// Bucket.
    pub bucket: String,
    /// Key as it is, not encoded.
    pub key: String,
    /// Entity tag, no quotes.
    pub etag: String,
    /// Size, bytes.
    pub size: u64,
    /// How, e.g. `Put`, `CompleteMultipartUpload`.
    pub how: String,
    /// When, Unix milliseconds.
    pub at_unix_ms: u64,
}

/// A key as S3 events carry it: form-encoded, but for `/`.
pub fn encode_key(key: &str) -> String {
    key.bytes().fold(String::with_capacity(key.len()), |mut text, byte| {
        match byte {
            b' ' => text.push('+'),
            _ if byte.is_ascii_alphanumeric() || b"-._*/".contains(&byte) => text.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}

/// `2026-11-23T20:29:24.123Z`.
fn timestamp(unix_ms: u64) -> String {
    let (days, of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Civil date from days, Howard Hinnant's algorithm; 719468 days lie between 0000-03-01 and 1970-01-01.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hours, minutes, seconds, ms) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{ms:03}Z")
}

impl Created {
    /// The event a function gets, as AWS shapes it (version 2.1).
    pub fn payload(&self, region: &str, function: &str) -> Value {
        json!({"Records": [{
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "awsRegion": region,
            "eventTime": timestamp(self.at_unix_ms),
            "eventName": format!("ObjectCreated:{}", self.how),
            "userIdentity": {"principalId": "vp"},
            "requestParameters": {"sourceIPAddress": "127.0.0.1"},
            "responseElements": {"x-amz-request-id": "", "x-amz-id-2": ""},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": function,
                "bucket": {"name": self.bucket, "ownerIdentity": {"principalId": "vp"}, "arn": format!("arn:aws:s3:::{}", self.bucket)},
                "object": {"key": encode_key(&self.key), "size": self.size, "eTag": self.etag, "sequencer": format!("{:016X}", self.at_unix_ms)},
            },
        }]})
    }

    /// The created objects a webhook's body speaks of; other events (deletions, the test event) give none.
    ///
    /// # Errors
    /// A sentence when the body is not an S3 event.
    pub fn from_webhook(body: &Value, now_unix_ms: u64) -> Result<Vec<Self>, String> {
        if body.get("Event").and_then(Value::as_str) == Some("s3:TestEvent") {
            return Ok(Vec::new());
        }
        let records = body.get("Records").and_then(Value::as_array).ok_or("no Records: not an S3 event")?;
        let mut created = Vec::new();
        for record in records {
            let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
            let name = text("/eventName").ok_or("a record without eventName")?;
            let Some((_, how)) = name.split_once("ObjectCreated:") else { continue };
            created.push(Self {
                bucket: text("/s3/bucket/name").ok_or("a record without s3.bucket.name")?.to_owned(),
                key: text("/s3/object/key").ok_or("a record without s3.object.key")?.to_owned(),
                etag: text("/s3/object/eTag").unwrap_or_default().trim_matches('"').to_owned(),
                size: record.pointer("/s3/object/size").and_then(Value::as_u64).unwrap_or_default(),
                how: how.to_owned(),
                at_unix_ms: now_unix_ms,
            });
        }
        Ok(created)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_as_aws_encodes_them() {
        assert_eq!(encode_key("a b+c/ä..%41.mp4"), "a+b%2Bc/%C3%A4..%2541.mp4");
    }

    #[test]
    fn times_are_written_as_dates() {
        // date -u -d @1795465764; date -u -d @951782400
        assert_eq!(timestamp(1_795_465_764_007), "2026-11-23T20:29:24.007Z");
        assert_eq!(timestamp(951_782_400_000), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn only_created_objects_of_a_webhook_become_events() {
        let record = |name: &str| json!({"eventName": name, "s3": {"bucket": {"name": "b"}, "object": {"key": "a b", "eTag": "\"e\"", "size": 3}}});
        let body = json!({"Records": [record("s3:ObjectCreated:Put"), record("s3:ObjectRemoved:Delete")]});
        let created = Created::from_webhook(&body, 5).unwrap();
        assert_eq!(created, [Created { bucket: "b".into(), key: "a b".into(), etag: "e".into(), size: 3, how: "Put".into(), at_unix_ms: 5 }]);
        let payload = created[0].payload("us-east-1", "f");
        assert_eq!(payload.pointer("/Records/0/s3/object/key").unwrap(), "a+b");
        assert_eq!(Created::from_webhook(&json!({"Event": "s3:TestEvent"}), 5).unwrap(), []);
        assert!(Created::from_webhook(&json!({}), 5).is_err());
    }
}
