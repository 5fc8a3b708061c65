//! Pushes to a registry that others read from, and to ones that want something first.

use std::sync::Arc;

use super::*;
use crate::archive;
use crate::platform::Platform;
use crate::registry::{Registries, Resolve};
use crate::testing::distribution::{Distribution, run};
use crate::testing::registry::{impatient, insecure, no_names};
use crate::testing::{Forge, ImageForge, Reply, Scratch, TestRegistry};

fn tars() -> [Vec<u8>; 2] {
    [
        Forge::new().dir("etc").file("etc/a", vec![7; 300_000]).finish(),
        Forge::new().dir("etc").file("etc/b", "b").file("etc/.wh.a", "").finish(),
    ]
}

fn image() -> ImageForge {
    tars().iter().fold(ImageForge::new(), |image, tar| image.layer(tar))
}

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

fn puller(scratch: &Scratch, host: &str) -> Puller {
    let store = Store::open(&scratch.empty("store")).unwrap();
    Puller::new(store, insecure(&[host.to_owned()]), no_names()).unwrap().with_patience(impatient())
}

/// Loads the image under a name, as if it had been made here.
fn load(puller: &Puller, name: &str) -> Image {
    let mut forge = Forge::new();
    let mut paths = Vec::new();
    for (number, tar) in tars().iter().enumerate() {
        forge = forge.file(format!("{number}.tar"), tar);
        paths.push(format!("\"{number}.tar\""));
    }
    let line = format!(r#"[{{"Config":"c.json","RepoTags":["{name}"],"Layers":[{}]}}]"#, paths.join(","));
    let bytes = forge.file("c.json", image().config()).file("manifest.json", line).finish();
    archive::load(puller.store(), &bytes[..], &amd64()).unwrap().remove(0).image
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_read_by_others_and_pulled_back() {
    let scratch = Scratch::new();
    let Some(registry) = Distribution::start(&scratch) else { return };
    let puller = puller(&scratch, &registry.host);
    let text = format!("{}/team/app:1", registry.host);
    let name: Reference = text.parse().unwrap();
    let image = load(&puller, &text);
    let (sender, mut steps) = mpsc::channel(64);
    let pushed = puller.push(&name, None, Some(sender)).await.unwrap();
    let mut seen = Vec::new();
    while let Ok(step) = steps.try_recv() {
        seen.push(step.status);
    }
    assert_eq!(seen.iter().filter(|status| **status == PushStatus::Pushed).count(), 2);
    let target = scratch.empty("theirs");
    run(std::process::Command::new("skopeo")
        .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
        .arg(format!("docker://{text}"))
        .arg(format!("dir:{}", target.display())));
    assert!(target.join(image.id.hex()).exists(), "the configuration is another");

    let other = Scratch::new();
    let second = self::puller(&other, &registry.host);
    let pulled = second.pull(&name, &amd64(), None, None).await.unwrap();
    assert_eq!(pulled.id, image.id);
    assert_eq!(pulled.manifest, pushed.digest);
    // What was pulled goes back as it came: nothing is packed, the manifest keeps its digest.
    let retagged: Reference = format!("{}/other/app:2", registry.host).parse().unwrap();
    second.store().tag(&pulled.id, &retagged).unwrap();
    let (sender, mut steps) = mpsc::channel(64);
    assert_eq!(second.push(&retagged, None, Some(sender)).await.unwrap().digest, pushed.digest);
    while let Ok(step) = steps.try_recv() {
        let expected =
            [PushStatus::Preparing, PushStatus::Mounted("team/app".into()), PushStatus::AlreadyExists];
        assert!(expected.contains(&step.status), "{step:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_elsewhere_carry_no_authorization() {
    let (scratch, storage, registry) =
        (Scratch::new(), TestRegistry::start().await, TestRegistry::start().await);
    storage.script(|_| Some(Reply::new(201)));
    let host = storage.host();
    registry.script(move |call| {
        if !call.header("authorization").is_some_and(|value| value.starts_with("Basic ")) {
            return Some(Reply::new(401).header("www-authenticate", "Basic"));
        }
        match call.method.as_str() {
            "HEAD" => Some(Reply::new(404)),
            "POST" => Some(Reply::new(202).header("location", format!("http://{host}/upload?sign=1"))),
            _ => Some(Reply::new(201)),
        }
    });
    let puller = puller(&scratch, &registry.host());
    let text = format!("{}/app:1", registry.host());
    load(&puller, &text);
    let auth = Credentials::Password { username: "u".into(), password: "p".into() };
    puller.push(&text.parse().unwrap(), Some(auth), None).await.unwrap();
    let calls = storage.calls();
    // Two layers and the configuration, each whole.
    assert_eq!(calls.len(), 3);
    for call in &calls {
        assert_eq!(call.header("authorization"), None);
        let digest = call.path.strip_prefix("/upload?sign=1&digest=").unwrap();
        assert!(digest.parse::<Digest>().unwrap().matches(&call.body));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_not_sent_where_they_must_not_go() {
    for location in ["http://169.254.169.254/x", "http://u:p@127.0.0.1/x", "http://localhost:1/x", ""] {
        let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
        registry.script(move |call| match call.method.as_str() {
            "POST" => Some(Reply::new(202).header("location", location)),
            _ => Some(Reply::new(404)),
        });
        let puller = puller(&scratch, &registry.host());
        let text = format!("{}/app:1", registry.host());
        load(&puller, &text);
        let error = puller.push(&text.parse().unwrap(), None, None).await.unwrap_err();
        assert!(matches!(error, PushError::Unreachable { .. }), "{location:?}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_once_is_asked_again_and_one_that_refuses_is_not() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    let mut failures = 2;
    registry.script(move |call| match call.method.as_str() {
        "HEAD" => Some(Reply::new(404)),
        "POST" => Some(Reply::new(202).header("location", "/upload")),
        "PUT" if failures > 0 => {
            failures -= 1;
            Some(Reply::new(503).header("retry-after", "0"))
        }
        _ => Some(Reply::new(201)),
    });
    let puller = puller(&scratch, &registry.host());
    let text = format!("{}/app:1", registry.host());
    let image = load(&puller, &text);
    puller.push(&text.parse().unwrap(), None, None).await.unwrap();
    registry
        .script(|_| Some(Reply::new(403).body(r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#)));
    let before = registry.calls().len();
    let error = puller.push(&text.parse().unwrap(), None, None).await.unwrap_err();
    assert!(matches!(error, PushError::Denied { .. }), "{error:?}");
    assert_eq!(registry.calls().len(), before + 1);
    let by_digest = text.parse::<Reference>().unwrap().with_digest(image.id);
    assert!(matches!(puller.push(&by_digest, None, None).await, Err(PushError::ByDigest)));
    let missing = format!("{}/missing:1", registry.host()).parse().unwrap();
    assert!(matches!(puller.push(&missing, None, None).await, Err(PushError::NotFound(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_leaves_nothing_in_the_store() {
    let (scratch, registry) = (Scratch::new(), TestRegistry::start().await);
    registry.script(|call| match call.method.as_str() {
        "POST" => Some(Reply::new(202).header("location", "/upload")),
        "HEAD" => Some(Reply::new(404)),
        _ => Some(Reply::new(400)),
    });
    let resolver: Arc<dyn Resolve> = no_names();
    let store = Store::open(&scratch.empty("store")).unwrap();
    let registries = Registries { ..insecure(&[registry.host()]) };
    let puller = Puller::new(store.clone(), registries, resolver).unwrap();
    let text = format!("{}/app:1", registry.host());
    load(&puller, &text);
    assert!(puller.push(&text.parse().unwrap(), None, None).await.is_err());
    assert_eq!(std::fs::read_dir(store.root().join("staging")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_images_and_tags_are_told_apart() {
    let scratch = Scratch::new();
    let puller = puller(&scratch, "127.0.0.1:1");
    let push =
        async |name: &str| puller.push(&name.parse().unwrap(), None, None).await.unwrap_err().to_string();
    assert_eq!(
        push("127.0.0.1:1/nope:1").await,
        "An image does not exist locally with the tag: 127.0.0.1:1/nope"
    );
    load(&puller, "127.0.0.1:1/app:1");
    assert_eq!(push("127.0.0.1:1/app:2").await, "tag does not exist: 127.0.0.1:1/app:2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_image_is_known_by_its_digest() {
    let scratch = Scratch::new();
    let Some(registry) = Distribution::start(&scratch) else { return };
    let puller = puller(&scratch, &registry.host);
    let name = format!("{}/app:1", registry.host);
    let image = load(&puller, &name);
    let pushed = puller.push(&name.parse().unwrap(), None, None).await.unwrap();
    let by_digest = format!("{}/app@{}", registry.host, pushed.digest);
    let found = puller.store().find(&by_digest).unwrap();
    assert_eq!((&found.id, &found.repo_digests[..]), (&image.id, &[by_digest.clone()][..]));
    let described = puller.describe(&name.parse().unwrap(), None).await.unwrap();
    assert_eq!((described.digest, described.size), (pushed.digest, pushed.size));
    assert_eq!(described.platforms, [amd64()]);
    assert_eq!(described.media_type, crate::manifest::OCI_MANIFEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_an_index_is_searched_by_its_catalogue() {
    let scratch = Scratch::new();
    let Some(registry) = Distribution::start(&scratch) else { return };
    let puller = puller(&scratch, &registry.host);
    for repository in ["team/app", "team/tool"] {
        let name = format!("{}/{repository}:1", registry.host);
        load(&puller, &name);
        puller.push(&name.parse().unwrap(), None, None).await.unwrap();
    }
    let names = async |term: &str, limit| {
        let hits = puller.search(&registry.host, term, limit, None).await.unwrap();
        hits.into_iter().map(|hit| hit.name).collect::<Vec<_>>()
    };
    assert_eq!(names("app", 25).await, ["team/app"]);
    assert_eq!(names("team", 25).await, ["team/app", "team/tool"]);
    assert_eq!(names("team", 1).await.len(), 1);
    assert!(names("nothing", 25).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_tried_at_the_registry_itself() {
    use base64::Engine as _;
    let registry = TestRegistry::start().await;
    let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("me:secret"));
    registry.script(move |call| {
        assert_eq!(call.path, "/v2/");
        let good = call.header("authorization") == Some(&wanted);
        Some(if good {
            Reply::new(200)
        } else {
            Reply::new(401).header("www-authenticate", "Basic realm=\"x\"")
        })
    });
    let scratch = Scratch::new();
    let puller = puller(&scratch, &registry.host());
    let log_in = async |auth: Option<(&str, &str)>| {
        let auth = auth.map(|(username, password)| Credentials::Password {
            username: username.into(),
            password: password.into(),
        });
        puller.log_in(&registry.host(), auth).await
    };
    log_in(Some(("me", "secret"))).await.unwrap();
    for wrong in [Some(("me", "wrong")), None] {
        assert!(matches!(log_in(wrong).await, Err(RegistryError::Unauthorized { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_go_to_a_token_server_of_another_domain() {
    let registry = TestRegistry::start().await;
    registry.script(|call| {
        assert_eq!(call.header("authorization"), None);
        let realm = r#"Bearer realm="http://tokens.elsewhere.test/",service="s""#;
        Some(Reply::new(401).header("www-authenticate", realm))
    });
    let scratch = Scratch::new();
    let puller = puller(&scratch, &registry.host());
    let auth = Credentials::Password { username: "me".into(), password: "secret".into() };
    let error = puller.log_in(&registry.host(), Some(auth)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { .. }), "{error:?}");
}
