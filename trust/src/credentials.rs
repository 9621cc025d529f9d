//! A certificate with its key, in memory and as two files (`certificate.pem`: own certificate, then the root; `key.pem`: for the owner only).

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::RootHash;
use crate::certificate::{Certificate, CertificateError};

/// File with the certificates.
pub const CERTIFICATE: &str = "certificate.pem";
/// File with the key.
pub const KEY: &str = "key.pem";

/// What its holder proves itself with.
#[derive(Clone)]
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

/// Credentials that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not PEM, or without what should be in it.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl Credentials {
    /// A chain (own certificate first, root last) and its key as PKCS#8.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Self {
        Self { chain, key: key.to_vec() }
    }

    /// Own certificate, DER; empty when there is none.
    pub fn leaf(&self) -> &[u8] {
        self.chain.first().map_or(&[], |leaf| leaf.as_ref())
    }

    /// What the own certificate says.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn certificate(&self) -> Result<Certificate, CertificateError> {
        Certificate::read(self.leaf())
    }

    /// Hash of the root at the chain's end.
    pub fn root(&self) -> RootHash {
        RootHash::of(self.chain.last().map_or(&[], |root| root.as_ref()))
    }

    /// The chain.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }

    /// Reads both files in `folder`.
    ///
    /// # Errors
    /// A file is missing or not as it should be.
    pub fn load(folder: &Path) -> Result<Self, CredentialsError> {
        let (certificate, key) = (folder.join(CERTIFICATE), folder.join(KEY));
        let read = |path: &Path| fs::read(path).map_err(|source| CredentialsError::File { path: path.to_path_buf(), source });
        let malformed = |path: &Path, reason: String| CredentialsError::Malformed { path: path.to_path_buf(), reason };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&certificate)?).collect();
        let chain = chain.map_err(|error| malformed(&certificate, error.to_string()))?;
        if chain.len() < 2 {
            return Err(malformed(&certificate, format!("{} certificates; the own one and the root are needed", chain.len())));
        }
        let found = PrivatePkcs8KeyDer::from_pem_slice(&read(&key)?).map_err(|error| malformed(&key, error.to_string()))?;
        let credentials = Self { chain, key: found.secret_pkcs8_der().to_vec() };
        credentials.certificate().map_err(|error| malformed(&certificate, error.to_string()))?;
        // A crash between the two renames of `save` leaves a key and a certificate of different times.
        let signs = rustls::crypto::ring::default_provider().key_provider.load_private_key(credentials.key());
        let signs = signs.map_err(|error| malformed(&key, error.to_string()))?;
        let fit = rustls::sign::CertifiedKey::new(credentials.chain.clone(), signs).keys_match();
        fit.map_err(|error| malformed(&key, format!("it is not the certificate's: {error}")))?;
        Ok(credentials)
    }

    /// Writes both files, each whole or not at all: the key first, since a certificate without its key is worth nothing.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), CredentialsError> {
        let fail = |path: &Path, source| CredentialsError::File { path: path.to_path_buf(), source };
        fs::create_dir_all(folder).map_err(|source| fail(folder, source))?;
        let chain: String = self.chain.iter().map(|one| pem("CERTIFICATE", one)).collect();
        for (name, text) in [(KEY, pem("PRIVATE KEY", &self.key)), (CERTIFICATE, chain)] {
            let (path, fresh) = (folder.join(name), folder.join(format!("{name}.new")));
            // Never readable by others, not even for the moment before a chmod; a left-over may be.
            let _ = fs::remove_file(&fresh);
            let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_data()
            });
            written.and_then(|()| fs::rename(&fresh, &path)).map_err(|source| fail(&path, source))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Credentials {
    /// Never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("certificate", &self.certificate()).finish_non_exhaustive()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: String = text.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Authority;
    use crate::name::Rank;

    #[test]
    fn credentials_are_read_as_they_were_written_and_only_the_owner_reads_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create("dev").unwrap();
        let ada = authority.operator(Rank::Admin, "ada", 1_000_000).unwrap();
        ada.save(folder.path()).unwrap();
        let read = Credentials::load(folder.path()).unwrap();
        assert_eq!((read.chain(), &read.key, read.root()), (ada.chain(), &ada.key, authority.hash()));
        assert_eq!(fs::metadata(folder.path().join(KEY)).unwrap().permissions().mode() & 0o777, 0o600);
        // Written again over the first.
        authority.operator(Rank::Viewer, "bob", 1_000_000).unwrap().save(folder.path()).unwrap();
        assert_ne!(Credentials::load(folder.path()).unwrap().leaf(), ada.leaf());
    }

    #[test]
    fn whoever_prints_credentials_prints_no_key() {
        let ada = Authority::create("dev").unwrap().operator(Rank::Admin, "ada", 1_000_000).unwrap();
        let bytes = format!("{:?}", ada.key);
        let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &ada.key);
        for shown in [format!("{ada:?}"), format!("{:?}", Some(&ada))] {
            assert!(shown.contains("ada"), "{shown}");
            assert!(!shown.contains(&bytes) && !shown.contains(&base64), "the key is in it");
        }
    }

    #[test]
    fn a_missing_cut_or_foreign_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Credentials::load(folder.path()).unwrap_err().to_string().contains(CERTIFICATE));
        Authority::create("dev").unwrap().operator(Rank::Admin, "ada", 1_000_000).unwrap().save(folder.path()).unwrap();
        let path = folder.path().join(CERTIFICATE);
        let whole = fs::read_to_string(&path).unwrap();
        for wrong in ["", &whole[..whole.len() / 2], "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n"] {
            fs::write(&path, wrong).unwrap();
            assert!(Credentials::load(folder.path()).unwrap_err().to_string().contains(CERTIFICATE), "{wrong}");
        }
    }
}
