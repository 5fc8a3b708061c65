//! One question to name servers, one answer: shared by the machine's resolver and the servers on the bridges.
//!
//! Against forged answers each question has a fresh port, a random number, and the letters of its name in random case,
//! which the answer must repeat (draft-vixie-dnsext-dns0x20).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Bytes of the fixed part of a message (RFC 1035, section 4.1.1).
pub(crate) const HEADER_BYTES: usize = 12;
/// Largest answer by UDP we ask for and read: fits any path unfragmented (DNS flag day 2020).
pub(crate) const UDP_BYTES: u16 = 1232;
/// Wait for one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Questions by UDP to one server. The last one leaves the case of the name alone, for servers that do not repeat it.
const UDP_TRIES: u32 = 2;
/// The next server is asked when the one before has been silent for so long.
const NEXT_SERVER: Duration = Duration::from_millis(300);
/// Servers asked for one question.
const MAX_SERVERS: usize = 4;

const NO_ERROR: u8 = 0;
const NAME_ERROR: u8 = 3;

/// Asks `query` (a whole message) and returns the first useful answer, carrying the number and the spelling of
/// `query`. With `stream` the question goes by TCP. An answer that only says the server cannot is returned when no
/// other comes.
pub(crate) async fn ask(servers: &[SocketAddr], query: &[u8], stream: bool) -> io::Result<Vec<u8>> {
    let mut racing = JoinSet::new();
    for (place, server) in (0_u32..).zip(servers.iter().take(MAX_SERVERS)) {
        let (server, query) = (*server, query.to_vec());
        racing.spawn(async move {
            sleep(NEXT_SERVER * place).await;
            if stream { by_tcp(server, &query).await } else { by_udp(server, &query).await }
        });
    }
    let mut useless = Err(io::Error::new(io::ErrorKind::NotConnected, "no name server is known"));
    while let Some(outcome) = racing.join_next().await {
        match outcome.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(answer) if matches!(response_code(&answer), NO_ERROR | NAME_ERROR) => return Ok(answer),
            Ok(answer) => useless = Ok(answer),
            Err(error) if useless.is_err() => useless = Err(error),
            Err(_) => {}
        }
    }
    useless
}

async fn by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for attempt in 1..=UDP_TRIES {
        let disguise = Disguise::new(query, attempt < UDP_TRIES)?;
        match udp_once(server, &disguise).await {
            Ok(answer) => return Ok(disguise.lift(answer, query)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn udp_once(server: SocketAddr, disguise: &Disguise) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    // Connected: the kernel passes only packets of this server, and its "port unreachable".
    socket.connect(server).await?;
    socket.send(&disguise.bytes).await?;
    let end = Instant::now() + ANSWER_WAIT;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let received = timeout_at(end, socket.recv(&mut buffer)).await;
        let count = received.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let answer = &buffer[..count];
        // A forged answer must not end the wait for the true one.
        if disguise.is_answered_by(answer) {
            return Ok(answer.to_vec());
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let disguise = Disguise::new(query, false)?;
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        write_framed(&mut stream, &disguise.bytes).await?;
        read_framed(&mut stream).await
    };
    let answer = timeout(ANSWER_WAIT * 2, exchange).await;
    let answer = answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if disguise.is_answered_by(&answer) {
        Ok(disguise.lift(answer, query))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"))
    }
}

/// Reads one message with its length before it (RFC 1035, section 4.2.2).
pub(crate) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Writes one message with its length before it, in one piece.
pub(crate) async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(message);
    stream.write_all(&bytes).await
}

/// A question with another number and perhaps another spelling of its name.
struct Disguise {
    bytes: Vec<u8>,
    question_end: usize,
}

impl Disguise {
    fn new(query: &[u8], spelling: bool) -> io::Result<Disguise> {
        let question_end = question_end(query)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not one question"))?;
        let mut bytes = query.to_vec();
        let mut random = vec![0; question_end];
        getrandom::fill(&mut random)?;
        bytes[..2].copy_from_slice(&random[..2]);
        if spelling {
            // Type and class are the last four bytes of the question.
            let name = HEADER_BYTES..question_end - 4;
            for (byte, dice) in bytes[name.clone()].iter_mut().zip(&random[name]) {
                // A length is below 64, so it is never taken for a letter.
                if byte.is_ascii_alphabetic() && dice & 1 == 1 {
                    *byte ^= 0x20;
                }
            }
        }
        Ok(Disguise { bytes, question_end })
    }

    fn is_answered_by(&self, answer: &[u8]) -> bool {
        let same = |range: std::ops::Range<usize>| answer.get(range.clone()) == self.bytes.get(range);
        let is_response = answer.get(2).is_some_and(|flags| flags & 0x80 != 0);
        // A server that failed may leave the question out.
        let failed = answer.get(4..6) == Some(&[0, 0]) && response_code(answer) != NO_ERROR;
        same(0..2) && is_response && (failed || same(HEADER_BYTES..self.question_end))
    }

    fn lift(&self, mut answer: Vec<u8>, query: &[u8]) -> Vec<u8> {
        answer[..2].copy_from_slice(&query[..2]);
        let question = HEADER_BYTES..self.question_end;
        if answer.len() >= self.question_end && answer.get(4..6) == Some(&[0, 1]) {
            answer[question.clone()].copy_from_slice(&query[question]);
        }
        answer
    }
}

/// The low four bits of the response code.
pub(crate) fn response_code(message: &[u8]) -> u8 {
    message.get(3).map_or(2, |flags| flags & 0x0f)
}

/// True when the answer did not fit.
pub(crate) fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Where the only question of a message ends; `None` when there is not exactly one, whole and without pointers.
pub(crate) fn question_end(message: &[u8]) -> Option<usize> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    let end = at + 1 + 4;
    (message.len() >= end).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        bytes.extend(name);
        bytes.extend([0, 1, 0, 1]);
        bytes
    }

    #[test]
    fn a_disguised_question_takes_only_its_own_answer() {
        let query = query(b"\x07example\x04test\0");
        let disguise = Disguise::new(&query, true).unwrap();
        assert!(disguise.bytes.eq_ignore_ascii_case(&{
            let mut same = query.clone();
            same[..2].copy_from_slice(&disguise.bytes[..2]);
            same
        }));
        let mut answer = disguise.bytes.clone();
        assert!(!disguise.is_answered_by(&answer), "a question is no answer");
        answer[2] |= 0x80;
        assert!(disguise.is_answered_by(&answer));
        assert_eq!(disguise.lift(answer.clone(), &query)[HEADER_BYTES..], query[HEADER_BYTES..]);
        let mut forged = answer.clone();
        forged[14] ^= 0x20;
        assert!(!disguise.is_answered_by(&forged), "another spelling");
        forged = answer.clone();
        forged[0] ^= 1;
        assert!(!disguise.is_answered_by(&forged), "another number");
        assert!(!disguise.is_answered_by(&answer[..10]));
        let failure = [disguise.bytes[0], disguise.bytes[1], 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(disguise.is_answered_by(&failure));
    }

    #[test]
    fn questions_that_are_not_one_are_refused() {
        assert_eq!(question_end(&query(b"\x01a\0")), Some(19));
        assert_eq!(question_end(&query(b"\xc0\x0c")), None);
        assert_eq!(question_end(&query(b"\x3fa")), None);
        let mut two = query(b"\x01a\0");
        two[5] = 2;
        assert_eq!(question_end(&two), None);
        assert_eq!(question_end(&[0; 5]), None);
        assert_eq!(question_end(&query(b"\x01a\0")[..18]), None);
    }
}
