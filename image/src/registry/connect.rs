//! TCP and TLS to registries. Names go through the caller's resolver, never through the C library.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::error::RegistryError;
use super::origin::{Origin, Scheme, is_public_enough};
use super::{Patience, Resolve};

/// Head start of one address over the next (RFC 8305, "Connection Attempt Delay").
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses tried.
const ADDRESSES_MAX: usize = 16;
/// Bytes of a file of certificates; the whole Mozilla bundle is 250 KiB.
const CERTIFICATES_SIZE_MAX: u64 = 4 << 20;

/// The certificates the operator named cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file cannot be read.
    #[error("cannot read certificates from {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds no usable certificate.
    #[error("{path} holds no usable certificate: {what}")]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// TLS itself cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

/// A connection, with or without TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Which addresses a connection may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    /// Any: the operator or the user named the host.
    Any,
    /// Only such as a registry may send others to.
    Public,
}

/// Makes connections.
pub(crate) struct Connector {
    tls: TlsConnector,
    resolver: Arc<dyn Resolve>,
    patience: Patience,
}

impl Connector {
    pub(crate) fn new(
        ca_files: &[PathBuf],
        resolver: Arc<dyn Resolve>,
        patience: Patience,
    ) -> Result<Self, TrustError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for path in ca_files {
            add_certificates(&mut roots, path)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TrustError::Tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), resolver, patience })
    }

    /// The same with other time limits.
    pub(crate) fn with_patience(&self, patience: Patience) -> Self {
        Self { tls: self.tls.clone(), resolver: Arc::clone(&self.resolver), patience }
    }

    pub(crate) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Connects to `origin`, TLS included.
    pub(crate) async fn connect(
        &self,
        origin: &Origin,
        reach: Reach,
    ) -> Result<Box<dyn Stream>, RegistryError> {
        let addresses = self.addresses(origin, reach).await?;
        let failed = |source| RegistryError::Connect { host: origin.to_string(), source };
        let stream = first(addresses, origin.port, self.patience.connect).await.map_err(failed)?;
        // Requests are small and complete; waiting for more to send only adds delay.
        stream.set_nodelay(true).map_err(failed)?;
        if origin.scheme == Scheme::Http {
            return Ok(Box::new(stream));
        }
        let name = match origin.address() {
            Some(address) => ServerName::IpAddress(address.into()),
            None => ServerName::try_from(origin.host.clone())
                .map_err(|_| RegistryError::protocol(origin, "under a name TLS does not allow"))?,
        };
        let limit = self.patience.connect;
        let late =
            || RegistryError::Timeout { host: origin.to_string(), what: "finish the TLS handshake", limit };
        let tls = timeout(limit, self.tls.connect(name, stream)).await.map_err(|_| late())?;
        Ok(Box::new(tls.map_err(failed)?))
    }

    async fn addresses(&self, origin: &Origin, reach: Reach) -> Result<Vec<IpAddr>, RegistryError> {
        let failed = |source| RegistryError::Resolve { host: origin.host.clone(), source };
        let mut addresses = match origin.address() {
            Some(address) => vec![address],
            None if origin.host == "localhost" => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            None => self.resolver.resolve(&origin.host).await.map_err(failed)?,
        };
        addresses.truncate(ADDRESSES_MAX);
        if addresses.is_empty() {
            return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
        }
        if reach == Reach::Public {
            addresses.retain(|address| is_public_enough(*address));
            if addresses.is_empty() {
                let reason = "the address belongs to this machine or its link";
                return Err(RegistryError::refused(origin, &origin.to_string(), reason));
            }
        }
        Ok(alternating(addresses))
    }
}

/// Keeps the order but lets the families take turns, so that a broken one costs one head start at most.
fn alternating(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

/// The first connection that comes about.
async fn first(addresses: Vec<IpAddr>, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    for (number, address) in (0_u32..).zip(addresses) {
        attempts.spawn(async move {
            sleep(HEAD_START * number).await;
            let connecting = TcpStream::connect(SocketAddr::new(address, port));
            timeout(limit, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        });
    }
    let mut last = io::Error::from(io::ErrorKind::NotConnected);
    while let Some(result) = attempts.join_next().await {
        match result {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(error) => last = io::Error::other(error),
        }
    }
    Err(last)
}

fn add_certificates(roots: &mut RootCertStore, path: &Path) -> Result<(), TrustError> {
    let unreadable = |source| TrustError::Read { path: path.to_owned(), source };
    let unusable = |what: String| TrustError::Certificate { path: path.to_owned(), what };
    if std::fs::metadata(path).map_err(unreadable)?.len() > CERTIFICATES_SIZE_MAX {
        return Err(unusable("the file is too large".into()));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let mut added = 0;
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        added += 1;
    }
    if added == 0 { Err(unusable("there is none in it".into())) } else { Ok(()) }
}
