//! A plain HTTP/1.1 client for what needs no TLS: the test registry and pages served by containers.
//!
//! One connection per request, a deadline on each, bodies bounded.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No test server is slower; unit: time for any one read or write.
const IDLE_DEADLINE: Duration = Duration::from_secs(10);

/// The largest body taken into memory; unit: bytes.
const BODY_MAX: u64 = 64 << 20;

/// Header lines beyond this mean the peer is no HTTP server.
const HEADERS_MAX: usize = 100;

/// An answer, whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Fetches a page.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    request(address, "GET", path, &[], &[])
}

/// Sends one request and reads the whole answer.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, IDLE_DEADLINE)
        .with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(IDLE_DEADLINE))?;
    stream.set_write_timeout(Some(IDLE_DEADLINE))?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    let context = || format!("{method} http://{address}{path}");
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).with_context(context)?;
    read_answer(&mut BufReader::new(stream), method).with_context(context)
}

fn read_answer(reader: &mut impl BufRead, method: &str) -> Result<Answer> {
    let status_line = line(reader)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not a status line: «{status_line}»"))?;
    let mut headers = Vec::new();
    loop {
        let text = line(reader)?;
        if text.is_empty() {
            break;
        }
        if headers.len() == HEADERS_MAX {
            bail!("more than {HEADERS_MAX} header lines");
        }
        let (name, value) = text.split_once(':').with_context(|| format!("not a header: «{text}»"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: Vec::new() };
    if method == "HEAD" || status == 204 {
        return Ok(answer);
    }
    answer.body = if answer.header("transfer-encoding") == Some("chunked") {
        chunked(reader)?
    } else {
        let length =
            answer.header("content-length").map(str::parse::<u64>).transpose().context("Content-Length")?;
        exactly(reader, length)?
    };
    Ok(answer)
}

fn exactly(reader: &mut impl BufRead, length: Option<u64>) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    let wanted = length.unwrap_or(BODY_MAX);
    if wanted > BODY_MAX {
        bail!("a body of {wanted} bytes is too large");
    }
    reader.take(wanted).read_to_end(&mut body)?;
    if length.is_some_and(|length| length != body.len() as u64) {
        bail!("the body ended after {} of {wanted} bytes", body.len());
    }
    Ok(body)
}

fn chunked(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(reader)?;
        let size = size.split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size.trim(), 16).with_context(|| format!("chunk size «{size}»"))?;
        if size == 0 {
            return Ok(body);
        }
        body.extend(exactly(reader, Some(size))?);
        line(reader)?;
        if body.len() as u64 > BODY_MAX {
            bail!("a chunked body passes {BODY_MAX} bytes");
        }
    }
}

fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut text = String::new();
    if reader.take(1 << 16).read_line(&mut text)? == 0 {
        bail!("the connection closed");
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::read_answer;

    fn body(text: &str) -> Result<String, String> {
        read_answer(&mut text.as_bytes(), "GET")
            .map(|answer| answer.text())
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn bodies_come_by_length_by_chunks_and_by_the_end() {
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi, more"), Ok("hi".into()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;x\r\n!\r\n0\r\n\r\n";
        assert_eq!(body(chunked), Ok("hi!".into()));
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\nall of it"), Ok("all of it".into()));
    }

    #[test]
    fn cut_answers_are_errors() {
        for cut in [
            "",
            "HTTP/1.1 200 OK\r\nA: b\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi",
            "nonsense\r\n\r\n",
        ] {
            assert!(body(cut).is_err(), "{cut:?}");
        }
    }
}
