//! Certificates for the API's mutual TLS: one authority, the machine's certificate, a client's certificate.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The names a client may reach the machine by: port forwards end on loopback.
const SERVER_NAMES: [&str; 4] = ["localhost", "berth", "127.0.0.1", "::1"];

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Certificate.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

/// An authority and the two certificates it gave.
#[derive(Debug, Clone)]
pub struct Pki {
    /// The authority's certificate, PEM.
    pub authority: String,
    /// For the machine.
    pub server: Identity,
    /// For who drives it.
    pub client: Identity,
}

/// File name, which part it is, and whether it is secret. The client's names are the docker command line's own.
type Part<'a> = (&'static str, &'a String, bool);

impl Pki {
    /// Makes all keys anew.
    pub fn generate() -> Result<Self> {
        let authority_key = KeyPair::generate().context("making the authority's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Berth API authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = params.self_signed(&authority_key).context("signing the authority")?.pem();
        let issuer = Issuer::new(params, authority_key);
        let server = issue(&issuer, "berth", &SERVER_NAMES, ExtendedKeyUsagePurpose::ServerAuth)?;
        let client = issue(&issuer, "administrator", &[], ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok(Self { authority, server, client })
    }

    /// Takes the certificates kept in a folder, or makes them there.
    pub fn load_or_generate(folder: &Path) -> Result<Self> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let identity = |certificate: &str, key: &str| {
            Some(Identity { certificate: read(certificate)?, key: read(key)? })
        };
        let kept = || {
            Some((
                read("ca.pem")?,
                identity("server.pem", "server-key.pem")?,
                identity("cert.pem", "key.pem")?,
            ))
        };
        if let Some((authority, server, client)) = kept() {
            return Ok(Self { authority, server, client });
        }
        let pki = Self::generate()?;
        pki.save(folder)?;
        Ok(pki)
    }

    /// Writes all parts; `ca.pem`, `cert.pem` and `key.pem` make the folder a `DOCKER_CERT_PATH`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for (name, content, secret) in self.parts() {
            let path = folder.join(name);
            let mode = if secret { 0o600 } else { 0o644 };
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&path);
            file.and_then(|mut file| file.write_all(content.as_bytes()))
                .with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    fn parts(&self) -> [Part<'_>; 5] {
        [
            ("ca.pem", &self.authority, false),
            ("cert.pem", &self.client.certificate, false),
            ("key.pem", &self.client.key, true),
            ("server.pem", &self.server.certificate, false),
            ("server-key.pem", &self.server.key, true),
        ]
    }

    /// The `[api]` table of a machine file that uses these certificates.
    pub fn machine_table(&self) -> String {
        let mut table = String::from("[api]\n");
        let values =
            [("client_ca", &self.authority), ("cert", &self.server.certificate), ("key", &self.server.key)];
        for (key, pem) in values {
            // Writing to a string cannot fail.
            let _ = writeln!(table, "{key} = \"\"\"\n{pem}\"\"\"");
        }
        table
    }
}

fn issue(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    names: &[&str],
    usage: ExtendedKeyUsagePurpose,
) -> Result<Identity> {
    let key = KeyPair::generate().context("making a key")?;
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).context("naming a certificate")?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let certificate = params.signed_by(&key, issuer).with_context(|| format!("signing {name}"))?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::Pki;

    #[test]
    fn what_is_kept_is_found_again() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let first = Pki::load_or_generate(folder.path()).expect("made");
        let second = Pki::load_or_generate(folder.path()).expect("kept");
        assert_eq!(first.machine_table(), second.machine_table());
        assert_eq!(first.client.key, second.client.key);
    }
}
