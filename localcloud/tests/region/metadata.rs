//! Each instance's metadata service: a token first, the truth, and a signature that fits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::StatusCode;

use crate::bed::{Bed, until};

struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    fn new(address: &str) -> Self {
        Self { base: format!("http://{address}:1338/latest"), http: reqwest::Client::builder().no_proxy().build().unwrap() }
    }

    async fn token(&self, seconds: &str) -> (StatusCode, String) {
        let request = self.http.put(format!("{}/api/token", self.base)).header("X-aws-ec2-metadata-token-ttl-seconds", seconds);
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn get(&self, path: &str, token: Option<&str>) -> (StatusCode, String) {
        let mut request = self.http.get(format!("{}/{path}", self.base));
        if let Some(token) = token {
            request = request.header("X-aws-ec2-metadata-token", token);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }
}

#[tokio::test]
async fn process_metadata_wants_a_token_and_tells_what_ec2_knows() {
    let bed = Bed::up(134, 1).await;
    let one = bed.booted(1).await.remove(0);
    let client = Client::new(&one.address);
    assert_eq!(client.get("meta-data/instance-id", None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(client.get("meta-data/instance-id", Some("made-up")).await.0, StatusCode::UNAUTHORIZED);
    for bad in ["0", "21601", "soon"] {
        assert_eq!(client.token(bad).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
    let (status, token) = client.token("60").await;
    assert_eq!(status, StatusCode::OK);
    let get = |path: &'static str| {
        let (client, token) = (&client, &token);
        async move { client.get(path, Some(token)).await }
    };
    let expect = [
        ("meta-data/instance-id", one.id.clone()),
        ("meta-data/instance-type", "t3.small".to_owned()),
        ("meta-data/placement/availability-zone", one.zone.clone()),
        ("meta-data/placement/region", "us-east-1".to_owned()),
        ("meta-data/local-ipv4", one.address.clone()),
        ("meta-data/tags/instance/aws:autoscaling:groupName", one.group.clone().unwrap()),
        ("meta-data/autoscaling/target-lifecycle-state", "InService".to_owned()),
        ("meta-data/iam/security-credentials/", "vp".to_owned()),
    ];
    for (path, wanted) in expect {
        assert_eq!(get(path).await, (StatusCode::OK, wanted), "{path}");
    }
    let credentials: serde_json::Value = serde_json::from_str(&get("meta-data/iam/security-credentials/vp").await.1).unwrap();
    assert_eq!(credentials["AccessKeyId"], bed.region.record().access_key_id);
    assert_eq!(get("meta-data/iam/security-credentials/other").await.0, StatusCode::NOT_FOUND);
    assert!(get("user-data").await.1.contains("run: agent"));

    assert_eq!(get("meta-data/spot/instance-action").await.0, StatusCode::NOT_FOUND);
    let notices = bed.state().join("instances").join(&one.id).join("notices.json");
    std::fs::write(&notices, r#"{"spot_action": {"action": "terminate", "time": "2030-01-01T00:00:00Z"}}"#).unwrap();
    assert!(get("meta-data/spot/instance-action").await.1.contains("terminate"));
}

#[tokio::test]
async fn process_the_identity_document_is_signed_and_its_service_goes_with_the_instance() {
    let bed = Bed::up(135, 1).await;
    let one = bed.booted(1).await.remove(0);
    let client = Client::new(&one.address);
    let token = client.token("60").await.1;
    let (_, document) = client.get("dynamic/instance-identity/document", Some(&token)).await;
    let (_, signature) = client.get("dynamic/instance-identity/signature", Some(&token)).await;
    let public = std::fs::read(bed.state().join("identity/public.der")).unwrap();
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::RSA_PKCS1_2048_8192_SHA256, public);
    let signature = STANDARD.decode(signature).unwrap();
    key.verify(document.as_bytes(), &signature).unwrap();
    assert!(key.verify(document.replace(&one.id, "i-other").as_bytes(), &signature).is_err());
    let parsed: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!((parsed["instanceId"].as_str(), parsed["privateIp"].as_str()), (Some(one.id.as_str()), Some(one.address.as_str())));

    bed.compute.terminate(&one.id).await.unwrap();
    until("no metadata for a terminated instance", || async { client.http.get(&client.base).send().await.err() }).await;
}
