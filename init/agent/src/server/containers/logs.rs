//! A container's log.

use bytes::{BufMut, Bytes, BytesMut};

use super::lifecycle;
use crate::command::{LogLine, LogRequest};
use crate::server::errors::ApiError;
use crate::server::request::Request;
use crate::server::respond::{self, Pieces};
use crate::server::routes::Answer;
use crate::server::{stream, time};

pub(crate) async fn logs(request: Request, name: &str) -> Answer {
    let query = &request.query;
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let now_ns = time::now_ns();
    let wanted = LogRequest {
        stdout,
        stderr,
        follow: query.flag("follow"),
        // 0 is what clients send for "not given".
        since_ns: query.time_ns("since", now_ns)?.filter(|time| *time != 0),
        until_ns: query.time_ns("until", now_ns)?.filter(|time| *time != 0),
        // As the reference engine: whatever is no number stands for all.
        tail: query.get("tail").and_then(|tail| tail.parse().ok()),
    };
    let timestamps = query.flag("timestamps");
    let view = request.api.owner.view(name).await?;
    if view.host_config.log_config.kind == "none" {
        return Err(ApiError::unsupported("configured logging driver does not support reading"));
    }
    let tty = view.config.tty;
    let lines = request.api.owner.logs(&view.id, wanted).await?;
    let mut body = Pieces::new(lines, move |line: LogLine| encode(&line, tty, timestamps)).batched();
    if wanted.follow {
        let (owner, id) = (request.api.owner.clone(), view.id.clone());
        body = body.then(async move { lifecycle::settle(&owner, &id).await });
    }
    Ok(respond::streamed(stream::content_type(&request, tty), body))
}

fn encode(line: &LogLine, tty: bool, timestamps: bool) -> Bytes {
    let mut text = BytesMut::with_capacity(line.bytes.len() + 32);
    if timestamps {
        text.put_slice(time::rfc3339_padded(line.at_ns).as_bytes());
        text.put_u8(b' ');
    }
    text.put_slice(&line.bytes);
    if tty { text.freeze() } else { stream::frame(line.stream, &text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Stream;

    /// The first frame of the recorded `logs.hexdump`.
    #[test]
    fn a_line_with_its_time_is_framed_as_recorded() {
        let line = LogLine {
            stream: Stream::Out,
            at_ns: 1_795_267_176_983_056_485,
            bytes: Bytes::from_static(b"out\n"),
        };
        assert_eq!(
            &encode(&line, false, true)[..],
            b"\x01\0\0\0\0\0\0\x232026-11-21T13:19:36.983056485Z out\n"
        );
        assert_eq!(&encode(&line, true, false)[..], b"out\n");
    }
}
