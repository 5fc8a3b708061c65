//! The server's certificate: from the machine file, or made on first boot and kept on the state disk.

use std::io;
use std::path::Path;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use sha2::{Digest, Sha256};

use crate::config::Machine;
use crate::store::write_durably;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// It cannot be made.
    #[error("make the server's certificate")]
    Make(#[source] rcgen::Error),
    /// It cannot be kept.
    #[error("keep the server's certificate")]
    Keep(#[source] io::Error),
}

/// The server's certificate chain and key, PEM.
pub(crate) fn server(machine: &Machine, dir: &Path) -> Result<(String, String), TlsError> {
    if let Some((cert, key)) = &machine.api.server {
        return Ok((cert.clone(), key.clone()));
    }
    let (cert_path, key_path) = (dir.join("server.pem"), dir.join("server-key.pem"));
    let kept = std::fs::read_to_string(&cert_path).and_then(|cert| Ok((cert, std::fs::read_to_string(&key_path)?)));
    if let Ok(pair) = kept {
        return Ok(pair);
    }
    let (cert, key, der) = make(&machine.name).map_err(TlsError::Make)?;
    std::fs::create_dir_all(dir).map_err(TlsError::Keep)?;
    // The key first: a certificate without key would be served for ever, a key without certificate is made anew.
    write_durably(&key_path, key.as_bytes()).map_err(TlsError::Keep)?;
    write_durably(&cert_path, cert.as_bytes()).map_err(TlsError::Keep)?;
    let fingerprint = crate::id::hex(&Sha256::digest(der));
    crate::log::info!("made a server certificate, sha256 {fingerprint}");
    Ok((cert, key))
}

fn make(name: &str) -> Result<(String, String, Vec<u8>), rcgen::Error> {
    let mut params = CertificateParams::new(vec![name.to_owned(), "localhost".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key.serialize_pem(), cert.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let machine = Machine::default();
        let first = server(&machine, dir.path()).expect("a certificate");
        assert!(first.0.contains("BEGIN CERTIFICATE") && first.1.contains("PRIVATE KEY"));
        assert_eq!(server(&machine, dir.path()).expect("the same certificate"), first);
    }
}
