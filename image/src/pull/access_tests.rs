//! Who may see what: tokens, credentials, redirects, TLS.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;

use super::*;
use crate::registry::{Mirror, RegistryError};
use crate::testing::registry::{Call, Table, impatient, insecure, no_names};
use crate::testing::{Forge, ImageForge, Reply, Scratch, TestRegistry};

fn image() -> ImageForge {
    ImageForge::new().layer(&Forge::new().file("f", "x").finish())
}

fn password() -> Credentials {
    Credentials::Password { username: "user".into(), password: "secret".into() }
}

fn basic() -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("user:secret"))
}

async fn pull(
    scratch: &Scratch,
    host: &str,
    registries: Registries,
    resolver: Arc<dyn Resolve>,
    auth: Option<Credentials>,
) -> Result<Image, PullError> {
    let store = Store::open(&scratch.path().join("store")).unwrap();
    let puller = Puller::new(store, registries, resolver).unwrap().with_patience(impatient());
    let reference = format!("{host}/demo").parse().unwrap();
    puller.pull(&reference, &"linux/amd64".parse().unwrap(), auth, None).await
}

async fn pull_plain(
    scratch: &Scratch,
    registry: &TestRegistry,
    auth: Option<Credentials>,
) -> Result<Image, PullError> {
    pull(scratch, &registry.host(), insecure(&[registry.host()]), no_names(), auth).await
}

/// A registry that wants `wanted` in every request, and sends others to `challenge`.
async fn guarded(wanted: String, challenge: String) -> TestRegistry {
    let registry = TestRegistry::start().await;
    registry.add("demo", "latest", &image());
    registry.script(move |call| {
        let allowed = call.header("authorization") == Some(&wanted);
        (call.path.starts_with("/v2/") && !allowed)
            .then(|| Reply::new(401).header("www-authenticate", challenge.clone()))
    });
    registry
}

fn bearer(realm: &str) -> String {
    format!(r#"Bearer realm="{realm}",service="s v",scope="repository:evil:pull,push""#)
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_credentials_are_sent_when_asked_for_and_not_before() {
    let registry = guarded(basic(), r#"Basic realm="x""#.into()).await;
    let error = pull_plain(&Scratch::new(), &registry, None).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
    pull_plain(&Scratch::new(), &registry, Some(password())).await.unwrap();
    let calls = registry.calls();
    let authorized: Vec<bool> = calls.iter().map(|call| call.header("authorization").is_some()).collect();
    // Asked without and refused; asked without again, then with for the manifest; later requests have it at once.
    assert_eq!(authorized, [false, false, true, true, true]);
    let scratch = Scratch::new();
    let wrong = Credentials::Password { username: "user".into(), password: "wrong".into() };
    assert!(matches!(
        pull_plain(&scratch, &registry, Some(wrong)).await,
        Err(PullError::Unauthorized { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_used_and_renewed() {
    let tokens = TestRegistry::start().await;
    let issued = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    tokens.script(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        Some(Reply::new(200).body(format!(r#"{{"token":"t{number}","expires_in":300}}"#)))
    });
    let registry = TestRegistry::start().await;
    registry.add("demo", "latest", &image());
    let (realm, valid) = (format!("http://{}/token?x=y", tokens.host()), Arc::clone(&issued));
    let mut uses = 0;
    registry.script(move |call| {
        // Each token is good for two requests, as if it had ended.
        let good = call.header("authorization") == Some(&format!("Bearer t{}", valid.load(Ordering::SeqCst)));
        uses = if good { uses + 1 } else { uses };
        let ended = good && uses == 3;
        (!good || ended).then(|| Reply::new(401).header("www-authenticate", bearer(&realm)))
    });
    pull_plain(&Scratch::new(), &registry, Some(password())).await.unwrap();
    assert_eq!(issued.load(Ordering::SeqCst), 2);
    let call = &tokens.calls()[0];
    assert_eq!(
        call.path, "/token?x=y&service=s%20v&scope=repository%3Ademo%3Apull",
        "only what is needed is asked for"
    );
    assert_eq!(call.header("authorization"), Some(basic().as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_and_a_registry_token_is_not() {
    let registry = TestRegistry::start().await;
    registry.add("demo", "latest", &image());
    let host = registry.host();
    registry.script(move |call| {
        if call.path == "/token" {
            assert_eq!(call.method, "POST");
            assert!(String::from_utf8_lossy(&call.body).contains("refresh_token=id%3D1"));
            return Some(Reply::new(200).body(r#"{"access_token":"fresh"}"#));
        }
        (!["Bearer fresh", "Bearer ready"].contains(&call.header("authorization").unwrap_or_default()))
            .then(|| Reply::new(401).header("www-authenticate", bearer(&format!("http://{host}/token"))))
    });
    pull_plain(&Scratch::new(), &registry, Some(Credentials::IdentityToken("id=1".into()))).await.unwrap();
    let before = registry.count("/token");
    pull_plain(&Scratch::new(), &registry, Some(Credentials::RegistryToken("ready".into()))).await.unwrap();
    assert_eq!((before, registry.count("/token")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn realms_that_must_not_be_asked_are_not() {
    let bait = TestRegistry::start().await;
    let port = bait.address.port();
    for realm in [
        format!("http://localhost:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        "http://169.254.169.254/latest/meta-data".into(),
        "http://[::ffff:169.254.169.254]/".into(),
        "http://[fe80::1]/".into(),
        "http://[fd00:ec2::254]/".into(),
        "http://100.100.100.200/".into(),
        "http://0.0.0.0/".into(),
        format!("http://user:pw@127.0.0.1:{port}/"),
        format!("http://inside.example:{port}/"),
        "ftp://127.0.0.1/".into(),
        "/token".into(),
        String::new(),
    ] {
        let registry = guarded("never".into(), bearer(&realm)).await;
        let scratch = Scratch::new();
        // A name is judged by the address behind it.
        let names = Table(HashMap::from([("inside.example".to_owned(), "127.0.0.1".parse().unwrap())]));
        let registries = insecure(&[registry.host()]);
        let error = pull(&scratch, &registry.host(), registries, Arc::new(names), Some(password()))
            .await
            .unwrap_err();
        match realm.as_str() {
            "" => assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}"),
            _ => assert!(
                matches!(error, PullError::Unreachable { source: RegistryError::Refused { .. }, .. }),
                "{realm}: {error:?}"
            ),
        }
    }
    assert!(bait.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tls_cannot_send_for_tokens_without() {
    let (registry, pem) = TestRegistry::start_tls("registry.example").await;
    let bait = TestRegistry::start().await;
    let realm = format!("http://127.0.0.1:{}/", bait.address.port());
    registry.script(move |_| Some(Reply::new(401).header("www-authenticate", bearer(&realm))));
    let error = pull_tls(&Scratch::new(), &registry, Some(pem), Some(password())).await.unwrap_err();
    assert!(
        matches!(error, PullError::Unreachable { source: RegistryError::Refused { .. }, .. }),
        "{error:?}"
    );
    assert!(bait.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn token_servers_that_misbehave_end_the_pull() {
    for (case, reply) in [
        ("redirect", Reply::new(307).header("location", "/elsewhere")),
        ("huge", Reply::new(200).body(vec![b' '; 10 << 20])),
        ("line break", Reply::new(200).body(r#"{"token":"a\r\nX-Evil: 1"}"#)),
        ("empty", Reply::new(200).body(r#"{"token":""}"#)),
        ("no JSON", Reply::new(200).body("token")),
        ("useless", Reply::new(200).body(r#"{"token":"never-accepted"}"#)),
        ("refused", Reply::new(401)),
    ] {
        let registry = TestRegistry::start().await;
        registry.add("demo", "latest", &image());
        let host = registry.host();
        registry.script(move |call| {
            if call.path.starts_with("/token") {
                return Some(reply.clone());
            }
            Some(Reply::new(401).header("www-authenticate", bearer(&format!("http://{host}/token"))))
        });
        let error = pull_plain(&Scratch::new(), &registry, Some(password())).await.unwrap_err();
        match case {
            "useless" | "refused" => {
                assert!(matches!(error, PullError::Unauthorized { .. }), "{case}: {error:?}");
            }
            _ => assert!(
                matches!(error, PullError::Unreachable { source: RegistryError::Protocol { .. }, .. }),
                "{case}: {error:?}"
            ),
        }
        assert!(registry.calls().len() <= 3, "{case}: a refusal is no reason to ask for ever");
        assert_eq!(registry.count("/elsewhere"), 0);
    }
}

/// A registry that sends every blob to where `location` says.
async fn redirecting(location: impl Fn(&Call, u16) -> String + Send + 'static) -> TestRegistry {
    let registry = TestRegistry::start().await;
    registry.add("demo", "latest", &image());
    let port = registry.address.port();
    registry.script(move |call| {
        if call.header("authorization") != Some(&basic()) && call.path.starts_with("/v2/") {
            return Some(Reply::new(401).header("www-authenticate", "Basic"));
        }
        let redirected = call.path.contains("/blobs/") && !call.path.contains("stop");
        redirected.then(|| Reply::new(307).header("location", location(call, port)))
    });
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn authorization_does_not_follow_a_redirect_to_another_origin() {
    let storage = TestRegistry::start().await;
    storage.add("demo", "latest", &image());
    let host = storage.host();
    let registry = redirecting(move |call, _| format!("http://{host}{}?signature=1", call.path)).await;
    // The storage knows blobs by path, so the query has to go again.
    storage.script(|call| {
        call.path
            .contains('?')
            .then(|| Reply::new(302).header("location", call.path.split('?').next().unwrap()))
    });
    pull_plain(&Scratch::new(), &registry, Some(password())).await.unwrap();
    assert!(storage.calls().len() >= 4);
    assert!(storage.calls().iter().all(|call| call.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_that_must_not_be_followed_are_not() {
    let bait = TestRegistry::start().await;
    let port = bait.address.port();
    for location in [
        "loop".to_owned(),
        "http://169.254.169.254/x".into(),
        format!("http://localhost:{port}/x"),
        format!("http://[::1]:{port}/x"),
        format!("http://inside.example:{port}/x"),
        format!("http://user@127.0.0.1:{port}/x"),
        "file:///etc/passwd".into(),
        String::new(),
    ] {
        let target = location.clone();
        let registry =
            redirecting(move |call, _| if target == "loop" { call.path.clone() } else { target.clone() })
                .await;
        let names = Table(HashMap::from([("inside.example".to_owned(), "127.0.0.1".parse().unwrap())]));
        let registries = insecure(&[registry.host()]);
        let scratch = Scratch::new();
        let error = pull(&scratch, &registry.host(), registries, Arc::new(names), Some(password()))
            .await
            .unwrap_err();
        let refused = matches!(&error, PullError::Unreachable { source: RegistryError::Refused { .. }, .. });
        // What has no scheme of ours is a path below the registry, and leads nowhere.
        let nowhere = location.starts_with("file:") || location.is_empty();
        assert!(refused || nowhere, "{location}: {error:?}");
        assert!(registry.calls().len() < 20, "{location}");
    }
    assert!(bait.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_does_not_open_a_door_for_redirects() {
    // The operator named localhost himself, so a connection to it is open.
    let local = TestRegistry::start().await;
    local.add("demo", "latest", &image());
    let by_name = format!("localhost:{}", local.address.port());
    let registry = TestRegistry::start().await;
    registry.add("demo", "latest", &image());
    let target = by_name.clone();
    registry.script(move |call| {
        let blob = call.path.contains("/blobs/");
        blob.then(|| Reply::new(307).header("location", format!("http://{target}{}", call.path)))
    });
    let scratch = Scratch::new();
    let store = Store::open(&scratch.path().join("store")).unwrap();
    let registries = insecure(&[registry.host(), by_name.clone()]);
    let puller = Puller::new(store.clone(), registries, no_names()).unwrap().with_patience(impatient());
    let platform = "linux/amd64".parse().unwrap();
    puller.pull(&format!("{by_name}/demo").parse().unwrap(), &platform, None, None).await.unwrap();
    store.prune(true, &|_| crate::store::Use::Free).unwrap();
    let calls = local.calls().len();
    let sent =
        puller.pull(&format!("{}/demo", registry.host()).parse().unwrap(), &platform, None, None).await;
    let error = sent.unwrap_err();
    assert!(
        matches!(error, PullError::Unreachable { source: RegistryError::Refused { .. }, .. }),
        "{error:?}"
    );
    assert_eq!(local.calls().len(), calls);
}

async fn pull_tls(
    scratch: &Scratch,
    registry: &TestRegistry,
    pem: Option<String>,
    auth: Option<Credentials>,
) -> Result<Image, PullError> {
    let mut registries = Registries::default();
    if let Some(pem) = pem {
        let path = scratch.path().join("ca.pem");
        std::fs::write(&path, pem).unwrap();
        registries.ca_files.push(path);
    }
    let names = Table(HashMap::from([
        ("registry.example".to_owned(), "127.0.0.1".parse().unwrap()),
        ("other.example".to_owned(), "127.0.0.1".parse().unwrap()),
    ]));
    let host = format!("registry.example:{}", registry.address.port());
    pull(scratch, &host, registries, Arc::new(names), auth).await
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_against_the_roots_and_the_operators_files() {
    let (registry, pem) = TestRegistry::start_tls("registry.example").await;
    registry.add("demo", "latest", &image());
    pull_tls(&Scratch::new(), &registry, Some(pem.clone()), None).await.unwrap();
    let calls = registry.calls().len();
    let unknown = pull_tls(&Scratch::new(), &registry, None, None).await.unwrap_err();
    assert!(
        matches!(unknown, PullError::Unreachable { source: RegistryError::Connect { .. }, .. }),
        "{unknown:?}"
    );
    let (misnamed, pem) = TestRegistry::start_tls("other.example").await;
    misnamed.add("demo", "latest", &image());
    assert!(pull_tls(&Scratch::new(), &misnamed, Some(pem), None).await.is_err());
    assert_eq!((registry.calls().len(), misnamed.calls().len()), (calls, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_spoken_only_to_hosts_that_were_named() {
    let registry = TestRegistry::start().await;
    registry.add("demo", "latest", &image());
    let scratch = Scratch::new();
    let error = pull(&scratch, &registry.host(), Registries::default(), no_names(), None).await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }));
    assert!(registry.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_first_and_the_registry_when_it_fails() {
    let (mirror, registry) = (TestRegistry::start().await, TestRegistry::start().await);
    registry.add("demo", "latest", &image());
    let registries = |resolves_tags| Registries {
        mirrors: vec![Mirror { registry: registry.host(), host: mirror.host(), resolves_tags }],
        ..insecure(&[registry.host(), mirror.host()])
    };
    pull(&Scratch::new(), &registry.host(), registries(true), no_names(), None).await.unwrap();
    assert_eq!(mirror.calls().len(), 1, "it knows nothing");
    pull(&Scratch::new(), &registry.host(), registries(false), no_names(), None).await.unwrap();
    assert_eq!(mirror.count("/manifests/"), 1, "it may not say what a tag means");
    assert_eq!(mirror.count("/blobs/"), 2, "content by digest may come from there");
    // With the manifest but without the blobs.
    mirror.add_manifest("demo", "latest", image().manifest());
    let before = registry.count("/manifests/");
    pull(&Scratch::new(), &registry.host(), registries(true), no_names(), None).await.unwrap();
    assert_eq!(registry.count("/manifests/"), before);
}
