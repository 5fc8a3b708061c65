//! A registry that serves what it is given and lies where a test tells it to.
//!
//! It speaks HTTP by hand, because a library would not let it send half a body.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::forge::ImageForge;
use crate::digest::Digest;
use crate::registry::{BoxFuture, Patience, Registries, Resolve};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Call {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What to answer.
#[derive(Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Content-Length, where it is not the body's length; `Some(None)` for none at all.
    pub(crate) length: Option<Option<u64>>,
    /// Bytes after which the connection is closed.
    pub(crate) cut: Option<usize>,
    /// Bytes after which nothing more comes, with the connection open.
    pub(crate) stall: Option<usize>,
    /// Pause after each byte.
    pub(crate) drip: Option<Duration>,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

type Script = Box<dyn FnMut(&Call) -> Option<Reply> + Send>;

#[derive(Default)]
struct Content {
    manifests: HashMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    script: Option<Script>,
    calls: Vec<Call>,
}

/// The registry. It ends with the runtime of its test.
#[derive(Clone)]
pub(crate) struct TestRegistry {
    pub(crate) address: SocketAddr,
    content: Arc<Mutex<Content>>,
}

impl TestRegistry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), content: Arc::default() };
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = serving.clone();
                tokio::spawn(async move { registry.serve(stream).await });
            }
        });
        registry
    }

    /// With TLS under `name`; also gives the certificate that has to be trusted, as PEM.
    pub(crate) async fn start_tls(name: &str) -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), content: Arc::default() };
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (registry, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        registry.serve(stream).await;
                    }
                });
            }
        });
        (registry, made.cert.pem())
    }

    /// `host:port` as in references.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn add(&self, name: &str, tag: &str, image: &ImageForge) {
        self.add_manifest(name, tag, image.manifest());
        self.content.lock().unwrap().blobs.extend(image.all_blobs());
    }

    pub(crate) fn add_manifest(&self, name: &str, tag: &str, manifest: Vec<u8>) {
        let digest = Digest::of(&manifest);
        let mut content = self.content.lock().unwrap();
        content.manifests.insert(format!("/v2/{name}/manifests/{digest}"), manifest.clone());
        content.manifests.insert(format!("/v2/{name}/manifests/{tag}"), manifest);
    }

    /// Asked for every request first; `None` answers as usual.
    pub(crate) fn script(&self, script: impl FnMut(&Call) -> Option<Reply> + Send + 'static) {
        self.content.lock().unwrap().script = Some(Box::new(script));
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.content.lock().unwrap().calls.clone()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.calls().iter().filter(|call| call.path.contains(part)).count()
    }

    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        while let Some(call) = read_call(&mut stream).await {
            let reply = {
                let mut content = self.content.lock().unwrap();
                content.calls.push(call.clone());
                let scripted = content.script.as_mut().and_then(|script| script(&call));
                scripted.unwrap_or_else(|| usual(&content, &call))
            };
            if write_reply(&mut stream, &call, reply).await.is_none() {
                return;
            }
        }
    }
}

fn usual(content: &Content, call: &Call) -> Reply {
    if let Some(manifest) = content.manifests.get(&call.path) {
        let text = String::from_utf8_lossy(manifest);
        let kind = if text.contains("\"manifests\"") {
            crate::manifest::OCI_INDEX
        } else {
            crate::manifest::OCI_MANIFEST
        };
        return Reply::new(200)
            .header("content-type", kind)
            .header("docker-content-digest", Digest::of(manifest).to_string())
            .body(manifest.clone());
    }
    let blob = call.path.rsplit('/').next().and_then(|digest| content.blobs.get(digest));
    let Some(blob) = blob.filter(|_| call.path.contains("/blobs/")) else {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        return Reply::new(404).body(body);
    };
    let from =
        call.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match from {
        Some(from) if from < blob.len() => Reply::new(206)
            .header("content-range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()))
            .body(&blob[from..]),
        Some(_) => Reply::new(416),
        None => Reply::new(200).body(blob.clone()),
    }
}

async fn read_call(stream: &mut (impl AsyncRead + Unpin)) -> Option<Call> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Call { method, path, headers, body })
}

/// `None` when the connection is to be closed.
async fn write_reply(stream: &mut (impl AsyncWrite + Unpin), call: &Call, reply: Reply) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} Said So\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = reply.length.unwrap_or(Some(reply.body.len() as u64)) {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    if call.method == "HEAD" {
        return Some(());
    }
    let end = reply.cut.or(reply.stall).unwrap_or(reply.body.len()).min(reply.body.len());
    if let Some(pause) = reply.drip {
        for byte in &reply.body[..end] {
            stream.write_u8(*byte).await.ok()?;
            stream.flush().await.ok()?;
            tokio::time::sleep(pause).await;
        }
    } else {
        stream.write_all(&reply.body[..end]).await.ok()?;
    }
    stream.flush().await.ok()?;
    if reply.stall.is_some() {
        std::future::pending::<()>().await;
    }
    let closes = reply.cut.is_some() || reply.length.is_some();
    if closes {
        let _ = stream.shutdown().await;
        return None;
    }
    Some(())
}

/// Names are known from a table only.
pub(crate) struct Table(pub(crate) HashMap<String, std::net::IpAddr>);

impl Resolve for Table {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, std::io::Result<Vec<std::net::IpAddr>>> {
        Box::pin(async move {
            let address = self.0.get(host).copied();
            address.map(|address| vec![address]).ok_or_else(|| std::io::ErrorKind::NotFound.into())
        })
    }
}

/// A resolver that knows no name.
pub(crate) fn no_names() -> Arc<dyn Resolve> {
    Arc::new(Table(HashMap::new()))
}

/// Plain HTTP to these hosts.
pub(crate) fn insecure(hosts: &[String]) -> Registries {
    Registries { insecure: hosts.to_vec(), ..Registries::default() }
}

/// Limits short enough for tests.
pub(crate) fn impatient() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        answer: Duration::from_secs(5),
        stall: Duration::from_millis(300),
        rate_window: Duration::from_millis(600),
        tries: 3,
        first_pause: Duration::from_millis(10),
        longest_pause: Duration::from_millis(200),
    }
}
