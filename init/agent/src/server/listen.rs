//! Sockets: the unix socket inside the machine, and TCP with mutual TLS. Never plaintext on TCP.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::Api;
use super::routes;

/// A peer has this long for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client has this long to send a request's head, and may leave a connection idle this long.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections per listener at once. Each stream (logs, events, attach) holds one, and 50 clients follow 20 each.
const MAX_CONNECTIONS: usize = 2048;
/// TLS handshakes at once: peers that are not known yet must not use up the connections of those that are.
const MAX_HANDSHAKES: usize = 64;
/// Longest head of a request, bytes. Filters and registry credentials travel in it.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// A TCP connection is probed after this much silence.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
/// After a failed `accept`, as for want of descriptors, the next try waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the certificates given cannot be served with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// Not PEM, or not of the kind expected.
    #[error("the {0} is not valid PEM")]
    Pem(&'static str, #[source] rustls::pki_types::pem::Error),
    /// Not usable for TLS.
    #[error("the {0} cannot be used")]
    Unusable(&'static str, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A TLS configuration that lets in only clients with a certificate of `client_ca`. All PEM.
pub(crate) fn mutual_tls(
    client_ca: &str,
    certificate: &str,
    key: &str,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    for der in pem_certificates("client CA", client_ca)? {
        roots.add(der).map_err(|error| TlsError::Unusable("client CA", error.into()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|error| TlsError::Unusable("client CA", error.into()))?;
    let chain = pem_certificates("server certificate", certificate)?;
    let key =
        PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| TlsError::Pem("server key", error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| TlsError::Unusable("list of protocol versions", error.into()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| TlsError::Unusable("server certificate", error.into()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn pem_certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.map_err(|error| TlsError::Pem(what, error))
}

/// A listener on a unix socket that only root may connect to; what was at `path` before is replaced.
pub(crate) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the unix socket for ever.
pub(crate) async fn serve_unix(listener: UnixListener, api: Arc<Api>) {
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let api = api.clone();
        tokio::spawn(async move {
            connection(stream, api).await;
            drop(seat);
        });
    }
}

/// Serves TCP with TLS for ever.
pub(crate) async fn serve_tls(listener: TcpListener, tls: Arc<rustls::ServerConfig>, api: Arc<Api>) {
    let acceptor = TlsAcceptor::from(tls);
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(handshake) = handshakes.clone().acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (acceptor, seats, api) = (acceptor.clone(), seats.clone(), api.clone());
        tokio::spawn(async move {
            let Some(stream) = shake_hands(&acceptor, stream, peer).await else { return };
            drop(handshake);
            let Ok(_seat) = seats.try_acquire_owned() else { return };
            connection(stream, api).await;
        });
    }
}

async fn shake_hands(
    acceptor: &TlsAcceptor,
    stream: tokio::net::TcpStream,
    _peer: SocketAddr,
) -> Option<tokio_rustls::server::TlsStream<tokio::net::TcpStream>> {
    // Frames are small and somebody waits for each.
    stream.set_nodelay(true).ok()?;
    // A client that vanished without a word must not hold its streams for ever.
    rustix::net::sockopt::set_socket_keepalive(&stream, true).ok()?;
    rustix::net::sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE).ok()?;
    // Peers without a certificate of ours are everyday noise on an open port and get no log line.
    tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await.ok()?.ok()
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, api: Arc<Api>) {
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(routes::answer(api, request).await) }
    });
    // An error here is a client that went away or spoke no HTTP; hyper has answered what can be answered.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}
