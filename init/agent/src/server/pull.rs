//! Pulling an image, and telling how it goes.

use berth_api::docker::images::{AuthConfig, ErrorDetail, Progress as Line, ProgressDetail};
use berth_image::{Credentials, Image, Platform, Progress, PullError, Reference, Status};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::errors::{self, ApiError};
use super::request::Request;
use super::respond::{self, Pieces, json_line};
use super::routes::Answer;

/// Steps on their way from the puller; more are dropped by it.
const STEPS_IN_FLIGHT: usize = 256;
/// Lines on their way to the client; steps beyond are left out, the last lines never.
const LINES_IN_FLIGHT: usize = 256;
/// Longest credentials read, bytes of base64.
const MAX_AUTH_BYTES: usize = 32 * 1024;

pub(crate) async fn create(request: Request) -> Answer {
    if request.query.text("fromSrc").is_some() {
        return Err(ApiError::unsupported("importing a file system as an image is not offered"));
    }
    let reference = reference(&request)?;
    let platform = platform(&request)?;
    let credentials = credentials(request.header("x-registry-auth"))?;
    let (steps, mut progress) = mpsc::channel(STEPS_IN_FLIGHT);
    let (puller, wanted) = (request.api.puller.clone(), reference.clone());
    let mut pull =
        tokio::spawn(async move { puller.pull(&wanted, &platform, credentials, Some(steps)).await });
    // A failure before the first step has a status of its own, as `docker run` of an unknown image expects.
    let Some(first) = progress.recv().await else {
        let image = (&mut pull).await.map_err(|error| ApiError::failed(error.to_string()))?;
        let image = image.map_err(|error| errors::pull(&error))?;
        request.api.announce_image("pull", &reference.familiar(), &reference.familiar());
        return Ok(respond::whole(
            hyper::StatusCode::OK,
            respond::JSON,
            Ending::of(&reference, &image).lines(),
        ));
    };
    let (lines, receiver) = mpsc::channel::<Bytes>(LINES_IN_FLIGHT);
    tokio::spawn(report(request, reference, pull, first, progress, lines));
    Ok(respond::streamed(respond::JSON, Pieces::new(receiver, |line: Bytes| line)))
}

async fn report(
    request: Request,
    reference: Reference,
    mut pull: tokio::task::JoinHandle<Result<Image, PullError>>,
    first: Progress,
    mut progress: mpsc::Receiver<Progress>,
    lines: mpsc::Sender<Bytes>,
) {
    let opening = Line {
        status: format!("Pulling from {}", short_repository(&reference)),
        id: reference.selector(),
        ..Line::default()
    };
    // A client that went away is noticed below.
    let _ = lines.send(json_line(&opening)).await;
    let mut ending = Ending::default();
    let mut step = Some(first);
    while let Some(current) = step {
        if !ending.takes(&current.status) {
            // A slow client misses steps, never the end.
            let _ = lines.try_send(json_line(&line(&current)));
        }
        step = tokio::select! {
            next = progress.recv() => next,
            () = lines.closed() => {
                // Nobody waits for it any more. What is in the store already is found by the next pull.
                pull.abort();
                return;
            }
        };
    }
    let last = match (&mut pull).await {
        Ok(Ok(image)) => {
            request.api.announce_image("pull", &reference.familiar(), &reference.familiar());
            ending.complete(&reference, &image).lines()
        }
        Ok(Err(error)) => failure(&errors::pull(&error).message),
        Err(error) => failure(&error.to_string()),
    };
    // A client that went away needs no end.
    let _ = lines.send(last).await;
}

fn failure(message: &str) -> Bytes {
    json_line(&Line {
        error_detail: Some(ErrorDetail { code: 0, message: message.to_owned() }),
        error: message.to_owned(),
        ..Line::default()
    })
}

/// The repository as the opening line names it: with `library/`, without Docker Hub's host.
fn short_repository(reference: &Reference) -> String {
    if reference.familiar_name() == reference.name() {
        reference.name()
    } else {
        reference.repository().to_owned()
    }
}

/// The last two lines of a pull.
#[derive(Default)]
struct Ending {
    digest: Option<String>,
    up_to_date: bool,
    name: String,
}

impl Ending {
    /// The end of a pull that told no steps.
    fn of(reference: &Reference, image: &Image) -> Self {
        Self { up_to_date: true, ..Self::default() }.complete(reference, image)
    }

    /// Keeps what belongs to the end; false for an ordinary step.
    fn takes(&mut self, status: &Status) -> bool {
        match status {
            Status::Digest(digest) => self.digest = Some(digest.to_string()),
            Status::UpToDate => self.up_to_date = true,
            Status::Downloaded => self.up_to_date = false,
            _ => return false,
        }
        true
    }

    fn complete(mut self, reference: &Reference, image: &Image) -> Self {
        self.name = reference.familiar();
        self.digest.get_or_insert_with(|| image.manifest.to_string());
        self
    }

    fn lines(&self) -> Bytes {
        let what = if self.up_to_date { "Image is up to date" } else { "Downloaded newer image" };
        let mut lines = Vec::new();
        for status in [
            self.digest.as_ref().map(|digest| format!("Digest: {digest}")),
            Some(format!("Status: {what} for {}", self.name)),
        ] {
            lines.extend(status.map(|status| json_line(&Line { status, ..Line::default() })));
        }
        lines.concat().into()
    }
}

/// A step as a line.
fn line(progress: &Progress) -> Line {
    let (detail, bar) = match &progress.status {
        Status::Downloading { current, total } => {
            (ProgressDetail { current: *current, total: *total }, bar(*current, *total))
        }
        _ => (ProgressDetail::default(), String::new()),
    };
    Line {
        status: progress.status.to_string(),
        progress_detail: progress.layer.is_some().then_some(detail),
        progress: bar,
        id: progress.layer.clone().unwrap_or_default(),
        ..Line::default()
    }
}

/// `[====>      ]  1.2MB/3.4MB`, for clients that print it as it is.
fn bar(current: u64, total: u64) -> String {
    const WIDTH: u64 = 50;
    if total == 0 {
        return human_size(current);
    }
    let done = (current.min(total) * WIDTH / total).min(WIDTH);
    let fill = usize::try_from(done).unwrap_or(0);
    let rest = usize::try_from(WIDTH - done).unwrap_or(0);
    let head = if done < WIDTH { ">" } else { "" };
    let blanks = " ".repeat(rest.saturating_sub(1));
    format!("[{}{head}{blanks}] {:>8}/{}", "=".repeat(fill), human_size(current), human_size(total))
}

/// Four digits and a decimal unit, as the reference engine writes sizes.
fn human_size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "shown with four digits")]
    let mut value = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let digits = match value {
        value if value < 10.0 => 3,
        value if value < 100.0 => 2,
        value if value < 1000.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

fn reference(request: &Request) -> Result<Reference, ApiError> {
    let name = request.query.get("fromImage").unwrap_or_default();
    let reference: Reference = name.parse().map_err(errors::bad_reference)?;
    match request.query.text("tag") {
        None => Ok(reference),
        Some(digest) if digest.contains(':') => {
            Ok(reference.with_digest(digest.parse().map_err(|_| ApiError::invalid("invalid digest format"))?))
        }
        Some(tag) => reference.with_tag(tag).map_err(errors::bad_reference),
    }
}

fn platform(request: &Request) -> Result<Platform, ApiError> {
    let Some(text) = request.query.text("platform") else { return Ok(Platform::host()) };
    text.parse().map_err(|_| {
        ApiError::invalid(format!("{text:?}: unknown operating system or architecture: invalid argument"))
    })
}

/// The credentials in `X-Registry-Auth`: base64 of JSON, `{}` or nothing for none.
fn credentials(header: Option<&str>) -> Result<Option<Credentials>, ApiError> {
    use base64::Engine;
    use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
    let Some(header) = header.filter(|header| !header.is_empty()) else { return Ok(None) };
    let invalid = || ApiError::invalid("invalid X-Registry-Auth header");
    if header.len() > MAX_AUTH_BYTES {
        return Err(invalid());
    }
    let lenient =
        GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    let url = GeneralPurpose::new(&base64::alphabet::URL_SAFE, lenient);
    let standard = GeneralPurpose::new(&base64::alphabet::STANDARD, lenient);
    let decode = |text: &str| url.decode(text).or_else(|_| standard.decode(text));
    let json = decode(header).map_err(|_| invalid())?;
    let auth: AuthConfig = berth_api::decode::from_slice(&json).map_err(|_| invalid())?;
    if !auth.identitytoken.is_empty() {
        return Ok(Some(Credentials::IdentityToken(auth.identitytoken)));
    }
    if !auth.registrytoken.is_empty() {
        return Ok(Some(Credentials::RegistryToken(auth.registrytoken)));
    }
    let (mut username, mut password) = (auth.username, auth.password);
    if username.is_empty() && !auth.auth.is_empty() {
        let pair =
            decode(&auth.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(invalid)?;
        let (user, word) = pair.split_once(':').ok_or_else(invalid)?;
        (username, password) = (user.to_owned(), word.trim_end_matches('\0').to_owned());
    }
    Ok((!username.is_empty()).then_some(Credentials::Password { username, password }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_look_like_dockers() {
        assert_eq!(bar(0, 3_370_000), format!("[>{}]       0B/3.37MB", " ".repeat(49)));
        assert_eq!(bar(10, 10), format!("[{}]      10B/10B", "=".repeat(50)));
        assert_eq!(human_size(1_234_567), "1.235MB");
        assert_eq!(human_size(999), "999B");
    }

    #[test]
    fn credentials_are_read_in_every_form_clients_send() {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE.encode(text);
        let read = |text: &str| credentials(Some(&encode(text))).unwrap();
        let password = || Some(Credentials::Password { username: "u".into(), password: "p:q".into() });
        assert_eq!(credentials(None).unwrap(), None);
        assert_eq!(credentials(Some("e30=")).unwrap(), None);
        assert_eq!(read(r#"{"username":"u","password":"p:q","serveraddress":"x"}"#), password());
        assert_eq!(read(&format!(r#"{{"auth":"{}"}}"#, encode("u:p:q"))), password());
        assert_eq!(
            read(r#"{"identitytoken":"t","username":"u"}"#),
            Some(Credentials::IdentityToken("t".into()))
        );
        assert_eq!(credentials(Some("%%%")).unwrap_err().message, "invalid X-Registry-Auth header");
    }
}
