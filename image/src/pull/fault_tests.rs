//! Blobs that break off, stall, or are not what they are called.

use std::time::Duration;

use super::tests::{amd64, big, entries, is_layer, reference, scripted, try_pull, usual};
use super::*;
use crate::registry::{ContentError, RegistryError};
use crate::testing::Reply;
use crate::testing::registry::{insecure, no_names};

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let mut faults = 0;
    let (scratch, registry) = scripted(move |call| {
        faults += usize::from(is_layer(call));
        let mut reply = usual(call);
        match faults {
            _ if !is_layer(call) => return None,
            1 => reply.cut = Some(300_000),
            2 => reply.stall = Some(200_000),
            3 => return Some(Reply::new(503).header("retry-after", "0")),
            _ => {}
        }
        Some(reply)
    })
    .await;
    try_pull(&scratch, &registry).await.unwrap();
    let ranges: Vec<String> = registry
        .calls()
        .iter()
        .filter(|call| is_layer(call))
        .filter_map(|call| call.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges, ["bytes=300000-", "bytes=500000-", "bytes=500000-"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_ranges_is_read_again_from_the_start() {
    let mut first = true;
    let (scratch, registry) = scripted(move |call| {
        if !is_layer(call) {
            return None;
        }
        let mut whole = call.clone();
        whole.headers.remove("range");
        let mut reply = usual(&whole);
        if std::mem::take(&mut first) {
            reply.cut = Some(400_000);
        }
        Some(reply)
    })
    .await;
    try_pull(&scratch, &registry).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_the_blob_are_refused() {
    type Lie = fn(Vec<u8>) -> Reply;
    let lies: [(&str, Lie); 6] = [
        ("other bytes", |mut blob| {
            blob[600_000] ^= 1;
            Reply::new(200).body(blob)
        }),
        ("too few", |blob| Reply::new(200).body(&blob[..blob.len() - 1])),
        ("too many", |blob| Reply::new(200).body([&blob[..], b"x"].concat())),
        ("too many without a length", |blob| Reply {
            unsized_body: true,
            ..Reply::new(200).body([&blob[..], b"x"].concat())
        }),
        ("a page", |_| Reply::new(200).body("<html>please log in</html>")),
        ("encoded", |blob| Reply::new(200).header("content-encoding", "gzip").body(blob)),
    ];
    for (case, lie) in lies {
        let (scratch, registry) =
            scripted(move |call| is_layer(call).then(|| lie(big().blobs.into_values().next().unwrap())))
                .await;
        let error = try_pull(&scratch, &registry).await.unwrap_err();
        match case {
            "encoded" => assert!(matches!(error, PullError::Unreachable { .. }), "{case}: {error:?}"),
            "other bytes" => {
                assert!(
                    matches!(error, PullError::Content(ContentError::Digest { .. })),
                    "{case}: {error:?}"
                );
            }
            _ => assert!(matches!(error, PullError::Content(ContentError::Size { .. })), "{case}: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_another_and_content_that_changes_are_noticed() {
    for (case, range) in [("wrong range", "bytes 0-1048575/1048576"), ("no range", "")] {
        let mut first = true;
        let (scratch, registry) = scripted(move |call| {
            if !is_layer(call) {
                return None;
            }
            if std::mem::take(&mut first) {
                return Some(Reply { cut: Some(100), ..usual(call) });
            }
            Some(Reply::new(206).header("content-range", range).body(vec![0; 1000]))
        })
        .await;
        let error = try_pull(&scratch, &registry).await.unwrap_err();
        assert!(
            matches!(error, PullError::Unreachable { source: RegistryError::Protocol { .. }, .. }),
            "{case}: {error:?}"
        );
    }
    let mut first = true;
    let (scratch, registry) = scripted(move |call| {
        let mut reply = usual(call);
        if std::mem::take(&mut first) && is_layer(call) {
            reply.cut = Some(500_000);
        } else if let Some(byte) = reply.body.last_mut() {
            *byte ^= 0xff;
        }
        is_layer(call).then_some(reply)
    })
    .await;
    // The first request is for the manifest, so `first` is spent there and every layer is altered.
    let error = try_pull(&scratch, &registry).await.unwrap_err();
    assert!(matches!(error, PullError::Content(ContentError::Digest { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_always_breaks_off_or_drips_ends_the_pull() {
    for (case, fault) in [
        ("cut", Reply { cut: Some(10), ..Reply::default() }),
        ("stall", Reply { stall: Some(10), ..Reply::default() }),
        ("drip", Reply { drip: Some(Duration::from_millis(20)), ..Reply::default() }),
    ] {
        let (scratch, registry) = scripted(move |call| {
            let reply = usual(call);
            is_layer(call).then_some(Reply { cut: fault.cut, stall: fault.stall, drip: fault.drip, ..reply })
        })
        .await;
        let ended = tokio::time::timeout(Duration::from_secs(20), try_pull(&scratch, &registry)).await;
        let error = ended.expect(case).unwrap_err();
        match case {
            "cut" => {
                assert!(matches!(error, PullError::Content(ContentError::Truncated { .. })), "{error:?}");
            }
            _ => assert!(
                matches!(error, PullError::Unreachable { source: RegistryError::Timeout { .. }, .. }),
                "{case}: {error:?}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let (scratch, registry) =
        scripted(|call| is_layer(call).then(|| Reply { stall: Some(500_000), ..usual(call) })).await;
    let store = Store::open(&scratch.path().join("store")).unwrap();
    let puller = Puller::new(store.clone(), insecure(&[registry.host()]), no_names()).unwrap();
    let name = reference(&registry, "demo");
    let platform = amd64();
    let pulling = puller.pull(&name, &platform, None, None);
    assert!(tokio::time::timeout(Duration::from_millis(700), pulling).await.is_err());
    let start = std::time::Instant::now();
    while entries(&store.root().join("staging")) > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "the tree is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(entries(&store.root().join("layers")), 0);
}
