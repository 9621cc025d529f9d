//! What a certificate says, read out of its DER. Its signature and times are judged elsewhere (`verify`): this only reads.

use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::name::Name;

/// A certificate as far as anybody here cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Who holds it.
    pub name: Name,
    /// Order of issue; only nodes' certificates have one.
    pub serial: Option<Serial>,
    /// The one address its holder calls from; only nodes' certificates have one.
    pub address: Option<IpAddr>,
    /// First second in which it is good, Unix time.
    pub not_before: u64,
    /// Last second in which it is good, Unix time.
    pub not_after: u64,
}

/// Order in which a cluster's leaders issued certificates to nodes: of two for one instance the greater is the later. A term has one leader and a leader
/// counts, so the order holds across leaders without being written anywhere, and it owes nothing to a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serial {
    /// Term of the leader that issued it.
    pub term: u64,
    /// Its count.
    pub count: u64,
}

/// First byte of a node's serial number: positive, and unlike those of all others.
const NODE: u8 = 0x01;
/// First byte of every other serial number; random bytes follow.
pub(crate) const OTHER: u8 = 0x02;

impl Serial {
    /// As it stands in a certificate.
    pub fn to_bytes(self) -> Vec<u8> {
        [&[NODE][..], &self.term.to_be_bytes(), &self.count.to_be_bytes()].concat()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (term, count) = bytes.strip_prefix(&[NODE])?.split_first_chunk::<8>()?;
        let count: [u8; 8] = count.try_into().ok()?;
        Some(Self { term: u64::from_be_bytes(*term), count: u64::from_be_bytes(count) })
    }
}

impl std::fmt::Display for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.term, self.count)
    }
}

/// A certificate that nobody here has made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509.
    #[error("it is no certificate")]
    Malformed,
    /// No name of ours in it, or more than one.
    #[error("it does not name exactly one member of a cluster")]
    Nameless,
}

impl Certificate {
    /// Reads one.
    ///
    /// # Errors
    /// It is not one of ours. Says nothing about its signature.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        let alternatives = parsed.subject_alternative_name().map_err(|_| CertificateError::Malformed)?;
        let names = alternatives.iter().flat_map(|extension| &extension.value.general_names);
        let (mut name, mut address) = (None, None);
        for one in names {
            match one {
                GeneralName::URI(text) if name.is_none() => name = Some(text.parse().map_err(|_| CertificateError::Nameless)?),
                GeneralName::IPAddress(bytes) if address.is_none() => address = Some(ip(bytes).ok_or(CertificateError::Malformed)?),
                _ => return Err(CertificateError::Nameless),
            }
        }
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let validity = parsed.validity();
        Ok(Self {
            name: name.ok_or(CertificateError::Nameless)?,
            serial: Serial::read(parsed.raw_serial()),
            address,
            not_before: seconds(validity.not_before),
            not_after: seconds(validity.not_after),
        })
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_leaders_first_certificate_is_newer_than_an_earlier_ones_last() {
        assert!(Serial { term: 3, count: 0 } > Serial { term: 2, count: u64::MAX });
        assert!(Serial { term: 2, count: 2 } > Serial { term: 2, count: 1 });
    }

    #[test]
    fn a_serial_is_read_as_it_is_written_and_no_other_number_is_one() {
        let serial = Serial { term: 0x8000_0000_0000_0001, count: 7 };
        let bytes = serial.to_bytes();
        assert_eq!(Serial::read(&bytes), Some(serial));
        for wrong in [&bytes[1..], &bytes[..16], &[bytes.as_slice(), &[0]].concat(), &[OTHER; 17], &[]] {
            assert_eq!(Serial::read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for wrong in [&b""[..], b"\x30", b"\x30\x80\x00\x00", &[0xFF; 64]] {
            assert!(Certificate::read(wrong).is_err());
        }
    }
}
