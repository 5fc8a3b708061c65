//! TCP: only clients with a certificate of our CA are let in.

use std::net::SocketAddr;

use berth_api::client::{Client, ClientError};
use berth_api::docker::system::VersionAnswer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::Server;
use crate::server::listen;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A server on TCP that lets in the clients of `clients`, with a certificate of `servers`.
async fn serve(server: &Server, clients: &Authority, servers: &Authority) -> SocketAddr {
    let (certificate, key) = servers.issue("localhost");
    let tls = listen::mutual_tls(&clients.pem, &certificate, &key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(listen::serve_tls(listener, tls, server.api.clone()));
    address
}

#[tokio::test]
async fn a_client_with_our_certificate_is_answered() {
    let (server, ca) = (Server::start(), Authority::new());
    let address = serve(&server, &ca, &ca).await;
    let (certificate, key) = ca.issue("client");
    let client = Client::tls(address, "localhost", &ca.pem, &certificate, &key).unwrap();
    let version: VersionAnswer = client.get("/version").await.unwrap();
    assert_eq!(version.api_version, "1.51");
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (server, ca, stranger) = (Server::start(), Authority::new(), Authority::new());
    let address = serve(&server, &ca, &ca).await;
    let (certificate, key) = stranger.issue("client");
    let client = Client::tls(address, "localhost", &ca.pem, &certificate, &key).unwrap();
    let error = client.get::<VersionAnswer>("/version").await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. } | ClientError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn plaintext_gets_no_answer() {
    use tokio::io::AsyncWriteExt;
    let (server, ca) = (Server::start(), Authority::new());
    let mut stream = TcpStream::connect(serve(&server, &ca, &ca).await).await.unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"));
}

#[test]
fn what_is_no_certificate_is_named() {
    let ca = Authority::new();
    let (certificate, key) = ca.issue("localhost");
    let message = |result: Result<_, listen::TlsError>| result.map(|_| ()).unwrap_err().to_string();
    assert_eq!(message(listen::mutual_tls("nonsense", &certificate, &key)), "the client CA cannot be used");
    assert_eq!(message(listen::mutual_tls(&ca.pem, &certificate, "x")), "the server key is not valid PEM");
}
