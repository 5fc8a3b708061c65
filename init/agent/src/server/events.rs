//! What happened: a short memory of the past and the stream of the present.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use berth_api::docker::events::{Actor, EventMessage};
use bytes::Bytes;
use tokio::sync::{broadcast, mpsc};

use super::containers::filters::Filters;
use super::errors::ApiError;
use super::request::Request;
use super::respond::{self, Pieces};
use super::routes::Answer;
use super::time;
use crate::command::Event;

/// Events remembered for `since`, as many as the reference engine keeps.
const REMEMBERED: usize = 256;
/// Events a slow client may lag behind before it loses some.
const LIVE: usize = 1024;
/// Events on their way to one client.
const IN_FLIGHT: usize = 64;

const KNOWN: [&str; 15] = [
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
    "label!",
];

/// The memory of events. Clones share it.
#[derive(Clone)]
pub(crate) struct Journal {
    inner: Arc<Mutex<Ring>>,
    live: broadcast::Sender<Arc<Event>>,
}

type Ring = VecDeque<Arc<Event>>;

impl Journal {
    /// Remembers what comes from `events` for as long as the sender lives.
    pub(crate) fn start(mut events: broadcast::Receiver<Event>) -> Self {
        let journal = Self { inner: Arc::default(), live: broadcast::Sender::new(LIVE) };
        let keeper = journal.clone();
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => keeper.keep(event),
                    // Some were lost in a burst; what comes next is kept again.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        journal
    }

    fn keep(&self, event: Event) {
        let event = Arc::new(event);
        let mut ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == REMEMBERED {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Under the lock, so that a new reader sees each event once. No receiver is no error.
        let _ = self.live.send(event);
    }

    /// What is remembered, and what comes after it.
    fn subscribe(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let ring = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (ring.iter().cloned().collect(), self.live.subscribe())
    }

    /// Clients that listen now.
    pub(crate) fn listeners(&self) -> usize {
        self.live.receiver_count()
    }
}

pub(crate) fn stream(request: &Request) -> Answer {
    let now_ns = time::now_ns();
    let since_ns = request.query.time_ns("since", now_ns)?.filter(|time| *time != 0);
    let until_ns = request.query.time_ns("until", now_ns)?.filter(|time| *time != 0);
    if let (Some(since), Some(until)) = (since_ns, until_ns)
        && until < since
    {
        return Err(ApiError::invalid("`since` time cannot be after `until` time"));
    }
    let filters = Filters::parse(request.query.get("filters"), &KNOWN)?;
    let (past, live) = request.api.journal.subscribe();
    let past = if since_ns.is_some() || until_ns.is_some() { past } else { Vec::new() };
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::spawn(feed(past, live, since_ns, until_ns, filters, sender));
    Ok(respond::streamed(respond::JSON, Pieces::new(receiver, |line: Bytes| line)))
}

async fn feed(
    past: Vec<Arc<Event>>,
    mut live: broadcast::Receiver<Arc<Event>>,
    since_ns: Option<i64>,
    until_ns: Option<i64>,
    filters: Filters,
    sender: mpsc::Sender<Bytes>,
) {
    let wanted = |event: &Event| {
        since_ns.is_none_or(|since| event.at_ns >= since)
            && until_ns.is_none_or(|until| event.at_ns <= until)
            && fits(&filters, event)
    };
    for event in past.iter().filter(|event| wanted(event)) {
        if sender.send(line(event)).await.is_err() {
            return;
        }
    }
    let left = until_ns.map(|until| u64::try_from(until.saturating_sub(time::now_ns())).unwrap_or(0));
    let end = async {
        match left {
            Some(ns) => tokio::time::sleep(std::time::Duration::from_nanos(ns)).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return,
            () = sender.closed() => return,
            event = live.recv() => match event {
                Ok(event) if wanted(&event) => {
                    if sender.send(line(&event)).await.is_err() {
                        return;
                    }
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

fn line(event: &Event) -> Bytes {
    let mut text = serde_json::to_vec(&message(event)).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// The event as clients read it.
fn message(event: &Event) -> EventMessage {
    let classic = matches!(event.kind, "container" | "image");
    let from = event.attributes.get("image").filter(|_| event.kind == "container");
    EventMessage {
        status: if classic { event.action.clone() } else { String::new() },
        id: if classic { event.id.clone() } else { String::new() },
        from: from.cloned().unwrap_or_default(),
        kind: event.kind.to_owned(),
        action: event.action.clone(),
        actor: Actor { id: event.id.clone(), attributes: event.attributes.clone() },
        scope: "local".to_owned(),
        time: event.at_ns.div_euclid(1_000_000_000),
        time_nano: event.at_ns,
    }
}

fn fits(filters: &Filters, event: &Event) -> bool {
    // `exec_create: sh` and `health_status: healthy` also go by the word before the colon.
    let word = event.action.split(':').next().unwrap_or_default();
    let action = filters.exact("event", &event.action) || filters.exact("event", word);
    let actor = |key: &str| {
        let name = event.attributes.get("name").map_or("", String::as_str);
        let fits =
            |wanted: &String| event.id.starts_with(wanted.as_str()) || name.starts_with(wanted.as_str());
        !filters.has(key) || filters.get(key).iter().any(fits)
    };
    action
        && filters.exact("type", event.kind)
        && filters.exact("scope", "local")
        && ["container", "network", "volume", "daemon", "plugin", "service", "node", "secret", "config"]
            .into_iter()
            .all(actor)
        && image_fits(filters, event)
        && filters.labels_match(Some(&event.attributes))
}

fn image_fits(filters: &Filters, event: &Event) -> bool {
    if !filters.has("image") {
        return true;
    }
    let attribute = if event.kind == "image" { "name" } else { "image" };
    let name = event.attributes.get(attribute).map_or("", String::as_str);
    let (bare, _) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((name, ""));
    filters.exact("image", &event.id) || filters.exact("image", name) || filters.exact("image", bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &'static str, action: &str) -> Event {
        let attributes = [("image", "alpine:3"), ("name", "e2"), ("k", "v")];
        Event {
            kind,
            action: action.to_owned(),
            id: "14c77be147".to_owned(),
            attributes: attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            at_ns: 1_795_267_147_997_226_905,
        }
    }

    /// Every recorded event comes out as it was recorded.
    #[test]
    fn events_are_written_as_recorded() {
        let recorded =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../api/tests/goldens/responses/events.json"));
        for text in recorded.lines() {
            let golden: EventMessage = serde_json::from_str(text).unwrap();
            let kind =
                ["container", "image", "network", "volume"].into_iter().find(|kind| *kind == golden.kind);
            let event = Event {
                kind: kind.unwrap(),
                action: golden.action.clone(),
                id: golden.actor.id.clone(),
                attributes: golden.actor.attributes.clone(),
                at_ns: golden.time_nano,
            };
            let ours: serde_json::Value = serde_json::from_slice(&line(&event)).unwrap();
            assert_eq!(ours, serde_json::from_str::<serde_json::Value>(text).unwrap());
        }
    }

    #[test]
    fn filters_choose_events() {
        let fits_text = |text: &str, event: &Event| fits(&Filters::parse(Some(text), &KNOWN).unwrap(), event);
        let die = event("container", "die");
        for (text, expected) in [
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"event":["start","die"]}"#, true),
            (r#"{"container":["e2"]}"#, true),
            (r#"{"container":["14c7"]}"#, true),
            (r#"{"container":["other"]}"#, false),
            (r#"{"image":["alpine"]}"#, true),
            (r#"{"image":["busybox"]}"#, false),
            (r#"{"label":["k=v"]}"#, true),
            (r#"{"label":["k=w"]}"#, false),
        ] {
            assert_eq!(fits_text(text, &die), expected, "{text}");
        }
        assert!(fits_text(r#"{"event":["exec_create"]}"#, &event("container", "exec_create: sh")));
        assert!(fits_text(r#"{"event":["health_status"]}"#, &event("container", "health_status: healthy")));
    }

    #[tokio::test]
    async fn a_new_reader_sees_each_event_once() {
        let (sender, receiver) = broadcast::channel(8);
        let journal = Journal::start(receiver);
        let (_, mut first) = journal.subscribe();
        sender.send(event("container", "create")).unwrap();
        first.recv().await.unwrap();
        let (past, mut live) = journal.subscribe();
        assert_eq!(past.len(), 1);
        sender.send(event("container", "start")).unwrap();
        assert_eq!(live.recv().await.unwrap().action, "start");
    }
}
