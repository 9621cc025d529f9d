//! Is this really an instance of ours? The instance identity document, its signature, and what EC2 says of the instance.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde::Deserialize;
use vp_cloud::ec2::{Compute, Instance, InstanceState};
use vp_trust::{RequestError, proof::ProofError};

/// Why an instance may not join. Shown to the instance and kept as an event.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the identity document's signature is not this region's")]
    Forged,
    #[error("the identity document cannot be read: {0}")]
    Unreadable(String),
    #[error("the identity document is of {document}, the claim says {claim}")]
    Other { document: String, claim: String },
    #[error("the identity document is of region {document}, this cluster is in {ours}")]
    Region { document: String, ours: String },
    #[error("EC2 knows no instance {0}")]
    Unknown(String),
    #[error("EC2 says the instance is {0}, not running")]
    NotRunning(&'static str),
    #[error("the instance belongs to {found}, not to our group {ours}")]
    Group { found: String, ours: String },
    #[error("EC2 says the address is {ec2}, the claim says {claim}")]
    Address { ec2: String, claim: String },
    #[error("it names the cluster '{given}', this is '{ours}'")]
    Cluster { given: String, ours: String },
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the certificate request is for {wish}, the claim is of instance {claim}")]
    Wish { wish: String, claim: String },
    #[error("the call comes from {from}, the claim is of an instance at {address}")]
    Elsewhere { from: String, address: String },
    #[error("the call back to the instance's address: {0}")]
    Proof(#[from] ProofError),
    /// Not a refusal for ever: EC2 could not be asked.
    #[error("EC2 could not be asked: {0}")]
    Later(String),
}

impl Refusal {
    /// Did EC2 know the instance as one of our account? Then there are only so many, and each refusal is worth a person's attention. The region signs documents
    /// of every account's instances, so a true document says nothing of the kind.
    pub fn is_of_our_account(&self) -> bool {
        match self {
            Self::NotRunning(_) | Self::Group { .. } | Self::Address { .. } | Self::Proof(_) => true,
            Self::Region { .. }
            | Self::Unknown(_)
            | Self::Elsewhere { .. }
            | Self::Forged
            | Self::Unreadable(_)
            | Self::Other { .. }
            | Self::Cluster { .. }
            | Self::Request(_)
            | Self::Wish { .. }
            | Self::Later(_) => false,
        }
    }
}

/// What a region's signed document says; other fields are not ours to judge.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    instance_id: String,
    region: String,
    private_ip: String,
}

impl Document {
    /// Reads a document; whose it is the signature says.
    ///
    /// # Errors
    /// [`Refusal::Unreadable`].
    pub fn read(text: &str) -> Result<Self, Refusal> {
        serde_json::from_str(text).map_err(|error| Refusal::Unreadable(error.to_string()))
    }
}

/// What the join is checked against.
#[derive(Clone)]
pub struct Verifier {
    /// RSAPublicKey DER (PKCS#1).
    pub public_key: Vec<u8>,
    pub cluster: String,
    pub region: String,
    pub group: String,
    pub compute: Compute,
}

/// An instance's claim, as it enrols with it.
pub struct Claim<'a> {
    pub cluster: &'a str,
    pub instance_id: &'a str,
    pub address: &'a str,
    pub document: &'a str,
    pub signature: &'a str,
}

impl Verifier {
    /// The document's signature and content, without asking anybody.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify_document(&self, claim: &Claim<'_>) -> Result<(), Refusal> {
        if claim.cluster != self.cluster {
            return Err(Refusal::Cluster { given: claim.cluster.to_owned(), ours: self.cluster.clone() });
        }
        let compact: String = claim.signature.split_whitespace().collect();
        let signature = STANDARD.decode(compact).map_err(|_| Refusal::Forged)?;
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key);
        key.verify(claim.document.as_bytes(), &signature).map_err(|_| Refusal::Forged)?;
        let document = Document::read(claim.document)?;
        if document.instance_id != claim.instance_id {
            return Err(Refusal::Other { document: document.instance_id, claim: claim.instance_id.to_owned() });
        }
        if document.region != self.region {
            return Err(Refusal::Region { document: document.region, ours: self.region.clone() });
        }
        if document.private_ip != claim.address {
            let document = format!("an instance at {}", document.private_ip);
            return Err(Refusal::Other { document, claim: claim.address.chars().take(40).collect() });
        }
        Ok(())
    }

    /// What EC2 says of an instance that has proved who it is: it runs, it is of our group, it has that address.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub async fn look_up(&self, instance_id: &str, address: &str) -> Result<Instance, Refusal> {
        let asked = self.compute.describe_instance(instance_id).await;
        let instance =
            asked.map_err(|error| if error.is_not_found() { Refusal::Unknown(instance_id.to_owned()) } else { Refusal::Later(error.to_string()) })?;
        if !matches!(instance.state, InstanceState::Running | InstanceState::Pending) {
            return Err(Refusal::NotRunning(instance.state.as_str()));
        }
        if instance.group.as_deref() != Some(&self.group) {
            let found = instance.group.unwrap_or_else(|| "no group".to_owned());
            return Err(Refusal::Group { found, ours: self.group.clone() });
        }
        if instance.address.as_deref() != Some(address) {
            return Err(Refusal::Address { ec2: instance.address.unwrap_or_default(), claim: address.to_owned() });
        }
        Ok(instance)
    }
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{RSA_PKCS1_SHA256, RsaKeyPair},
    };
    use vp_cloud::{Endpoints, Session};

    use super::*;

    fn key(base64: &str) -> RsaKeyPair {
        let compact: String = base64.split_whitespace().collect();
        RsaKeyPair::from_pkcs8(&STANDARD.decode(compact).unwrap()).unwrap()
    }

    /// Keys for tests only: nothing else trusts them.
    fn region_key() -> RsaKeyPair {
        key(include_str!("../tests/data/identity-test-key.pk8.base64"))
    }

    fn sign(key: &RsaKeyPair, document: &str) -> String {
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), document.as_bytes(), &mut signature).unwrap();
        // As IMDS gives it: in lines.
        STANDARD.encode(signature).as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect()
    }

    const DOCUMENT: &str =
        r#"{"instanceId": "i-1", "region": "us-east-1", "privateIp": "127.37.1.20", "availabilityZone": "us-east-1a", "pendingTime": "2026-01-01T00:00:00Z"}"#;

    async fn verifier() -> Verifier {
        let endpoints = Endpoints { region: Some("us-east-1".to_owned()), endpoint_url: Some("http://127.37.0.99:1".to_owned()), ..Endpoints::default() };
        let session = Session::load(endpoints).await;
        Verifier {
            public_key: region_key().public().as_ref().to_vec(),
            cluster: "dev".to_owned(),
            region: "us-east-1".to_owned(),
            group: "dev-nodes".to_owned(),
            compute: Compute::new(session.shared()),
        }
    }

    fn claim<'a>(document: &'a str, signature: &'a str) -> Claim<'a> {
        Claim { cluster: "dev", instance_id: "i-1", address: "127.37.1.20", document, signature }
    }

    #[tokio::test]
    async fn a_document_of_this_instance_signed_by_this_region_is_taken() {
        let signature = sign(&region_key(), DOCUMENT);
        verifier().await.verify_document(&claim(DOCUMENT, &signature)).unwrap();
    }

    #[tokio::test]
    async fn a_forged_signature_is_refused() {
        let verifier = verifier().await;
        let good = sign(&region_key(), DOCUMENT);
        let others = sign(&key(include_str!("../tests/data/other-region-test-key.pk8.base64")), DOCUMENT);
        let changed = DOCUMENT.replace("us-east-1a", "us-east-1b");
        let cut = &good[..good.len() / 2];
        for (name, document, signature) in [
            ("another key's", DOCUMENT, others.as_str()),
            ("of another document", &changed, good.as_str()),
            ("cut", DOCUMENT, cut),
            ("none", DOCUMENT, ""),
            ("not base64", DOCUMENT, "%%%%"),
        ] {
            let refused = verifier.verify_document(&claim(document, signature));
            assert!(matches!(refused, Err(Refusal::Forged)), "{name}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn a_true_document_of_somebody_else_is_refused() {
        let verifier = verifier().await;
        let key = region_key();
        let elsewhere = DOCUMENT.replace("us-east-1\"", "eu-west-1\"");
        let broken = "{\"instanceId\": 5}";
        let (good, far, odd) = (sign(&key, DOCUMENT), sign(&key, &elsewhere), sign(&key, broken));
        let refusal = |claim: Claim<'_>| verifier.verify_document(&claim).unwrap_err();
        assert!(matches!(refusal(Claim { instance_id: "i-2", ..claim(DOCUMENT, &good) }), Refusal::Other { .. }));
        assert!(matches!(refusal(Claim { address: "127.37.1.21", ..claim(DOCUMENT, &good) }), Refusal::Other { .. }));
        assert!(matches!(refusal(Claim { cluster: "prod", ..claim(DOCUMENT, &good) }), Refusal::Cluster { .. }));
        assert!(matches!(refusal(claim(&elsewhere, &far)), Refusal::Region { .. }));
        assert!(matches!(refusal(claim(broken, &odd)), Refusal::Unreadable(_)));
    }
}
