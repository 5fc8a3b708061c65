//! Opening a connection: unix socket, or TCP with mutual TLS.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::ClientError;

/// Where the server is and how to talk to it.
#[derive(Clone)]
pub(super) enum Target {
    Unix(PathBuf),
    Tls { address: SocketAddr, name: ServerName<'static>, connector: TlsConnector },
}

/// Any connection.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Target {
    pub(super) fn tls(
        address: SocketAddr,
        name: &str,
        ca: &str,
        certificate: &str,
        key: &str,
    ) -> Result<Self, ClientError> {
        let mut roots = rustls::RootCertStore::empty();
        for der in certificates("certificate of the CA", ca)? {
            roots.add(der).map_err(|source| credentials("certificate of the CA", source))?;
        }
        let chain = certificates("client certificate", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|source| credentials("client key", source))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| credentials("protocol versions", source))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|source| credentials("client certificate", source))?;
        let name =
            ServerName::try_from(name.to_owned()).map_err(|source| credentials("server name", source))?;
        Ok(Self::Tls { address, name, connector: TlsConnector::from(Arc::new(config)) })
    }

    pub(super) async fn open(&self) -> Result<Box<dyn Connection>, ClientError> {
        let failed = |source: io::Error| ClientError::Connect { target: self.to_string(), source };
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
            Self::Tls { address, name, connector } => {
                let tcp = TcpStream::connect(address).await.map_err(failed)?;
                tcp.set_nodelay(true).map_err(failed)?;
                Ok(Box::new(connector.connect(name.clone(), tcp).await.map_err(failed)?))
            }
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tls { address, .. } => write!(f, "tcp://{address}"),
        }
    }
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| credentials(what, source))
}

fn credentials(
    what: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ClientError {
    ClientError::Credentials { what, source: source.into() }
}
