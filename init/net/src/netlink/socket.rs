//! One netlink socket of any protocol: requests out, acknowledgements and dumps in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rtnetlink::sys::{Socket as RawSocket, SocketAddr};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force, set_socket_timeout,
};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Longest wait for an answer. The kernel answers inside the send; a longer wait means the answer was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes read at a time: the kernel fills at most 32 KiB of a dump into one datagram.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Send and receive buffer in bytes: room for the largest batch and its answers. Memory is taken as it is used.
const BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// Most messages one dump may bring, so that a dump of a table under attack stays bounded in memory.
const MAX_DUMP_MESSAGES: usize = 1_000_000;

const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The kernel refused a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error number.
    pub errno: Errno,
    /// The kernel's explanation, where it gives one (extended acknowledgement).
    pub text: Option<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{text}: {}", io::Error::from(self.errno)),
            None => io::Error::from(self.errno).fmt(f),
        }
    }
}

impl std::error::Error for Failure {}

/// One request: the kind and flags of its netlink header, and all that follows the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Message type.
    pub kind: u16,
    /// Flags beside `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub flags: u16,
    /// The message.
    pub body: Vec<u8>,
}

/// One message received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Message type.
    pub kind: u16,
    /// The message without its header.
    pub body: Vec<u8>,
}

/// A netlink socket. It stays in the network namespace it was opened in.
#[derive(Debug)]
pub struct Socket {
    raw: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of `protocol` (`NETLINK_ROUTE` is 0, `NETLINK_NETFILTER` is 12) in the namespace of the thread.
    pub fn open(protocol: isize) -> io::Result<Socket> {
        let mut socket = RawSocket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Only texts of errors depend on these two.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        // Beyond the system's limits for ordinary programs: one firewall is one message.
        set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)?;
        set_socket_send_buffer_size_force(&socket, BUFFER_BYTES)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Socket { raw: socket, sequence: 1, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Sends the requests in one call and returns the kernel's answer to each, in order. A refused request does not
    /// keep the kernel from working off the next.
    pub fn send_all(&mut self, requests: &[Request]) -> io::Result<Vec<Result<(), Failure>>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.sequence;
        let mut bytes = Vec::new();
        for request in requests {
            let header = Header { flags: request.flags | NLM_F_REQUEST | NLM_F_ACK, sequence: self.sequence };
            header.frame(request, &mut bytes)?;
            self.sequence = self.sequence.wrapping_add(1);
        }
        send_whole(&self.raw, &bytes)?;
        let mut answers: Vec<Option<Result<(), Failure>>> = vec![None; requests.len()];
        while answers.iter().any(Option::is_none) {
            let count = self.fill()?;
            for (header, body) in split(&self.buffer[..count]) {
                let index = header.sequence.wrapping_sub(first) as usize;
                if let (NLMSG_ERROR, Some(answer)) = (header.kind, answers.get_mut(index)) {
                    *answer = Some(acknowledgement(header.flags, body));
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Sends one request that asks for a list and collects the list.
    pub fn dump(&mut self, request: &Request) -> io::Result<Result<Vec<Message>, Failure>> {
        self.collect(request, NLM_F_DUMP)
    }

    /// Sends one request that asks for one object and returns what came before the acknowledgement.
    pub fn get(&mut self, request: &Request) -> io::Result<Result<Vec<Message>, Failure>> {
        self.collect(request, NLM_F_ACK)
    }

    /// Sends bytes framed elsewhere (nftables batches) and returns the answers that came, with their sequence numbers.
    /// A batch is answered inside the call, so what has not come by then will not come.
    pub fn send_framed(&mut self, bytes: &[u8]) -> io::Result<Vec<(u32, Result<(), Failure>)>> {
        send_whole(&self.raw, bytes)?;
        let mut answers = Vec::new();
        loop {
            let count = match recv(&self.raw, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((count, _)) => count,
                Err(Errno::AGAIN) => return Ok(answers),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for (header, body) in split(&self.buffer[..count]) {
                if header.kind == NLMSG_ERROR {
                    answers.push((header.sequence, acknowledgement(header.flags, body)));
                }
            }
        }
    }

    /// Closes the socket on a thread of its own. When a socket to netfilter closes, the kernel waits until all that was
    /// replaced before is freed: 10 to 20 ms that no container start should wait for.
    pub fn close_aside(self) {
        // Without a thread the closing is merely slow: the closure, and the socket with it, is dropped here.
        let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(self));
    }

    fn collect(&mut self, request: &Request, extra: u16) -> io::Result<Result<Vec<Message>, Failure>> {
        let sequence = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        Header { flags: request.flags | NLM_F_REQUEST | extra, sequence }.frame(request, &mut bytes)?;
        send_whole(&self.raw, &bytes)?;
        let mut messages = Vec::new();
        loop {
            let count = self.fill()?;
            for (header, body) in split(&self.buffer[..count]) {
                match header.kind {
                    _ if header.sequence != sequence => {}
                    NLMSG_DONE => return Ok(Ok(messages)),
                    NLMSG_ERROR => return Ok(acknowledgement(header.flags, body).map(|()| messages)),
                    kind if messages.len() < MAX_DUMP_MESSAGES => {
                        messages.push(Message { kind, body: body.to_vec() });
                    }
                    _ => return Err(io::Error::from(io::ErrorKind::OutOfMemory)),
                }
            }
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
        loop {
            match recv(&self.raw, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

fn send_whole(socket: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let sent = rustix::io::retry_on_intr(|| send(&socket, bytes, SendFlags::empty()))?;
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
}

struct Header {
    flags: u16,
    sequence: u32,
}

impl Header {
    fn frame(&self, request: &Request, bytes: &mut Vec<u8>) -> io::Result<()> {
        let length = u32::try_from(HEADER_BYTES + request.body.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(request.kind.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(&request.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Ok(())
    }
}

/// The netlink header of a message received.
pub(crate) struct Received {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
}

/// The messages of one datagram. Stops at the first that does not fit.
pub(crate) fn split(mut bytes: &[u8]) -> impl Iterator<Item = (Received, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let header =
            Received { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)? };
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, body))
    })
}

fn acknowledgement(flags: u16, body: &[u8]) -> Result<(), Failure> {
    let Some(code) = u32_at(body, 0).map(u32::cast_signed) else {
        return Err(Failure { errno: Errno::BADMSG, text: None });
    };
    if code == 0 {
        return Ok(());
    }
    let errno = Errno::from_raw_os_error(code.wrapping_neg());
    Err(Failure { errno, text: explanation(flags, body) })
}

/// The text attribute behind the repeated request in an error message.
fn explanation(flags: u16, body: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let request = if flags & NLM_F_CAPPED == 0 { u32_at(body, 4)? as usize } else { HEADER_BYTES };
    let mut attributes = body.get(4 + request.next_multiple_of(4)..)?;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length)?;
        if u16_at(attributes, 2)? & 0x3fff == NLMSGERR_ATTR_MSG {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..offset + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_datagram_yields_its_whole_messages_only() {
        let mut bytes = Vec::new();
        let request = Request { kind: 20, flags: 0, body: vec![1, 2, 3, 4, 5] };
        Header { flags: 0, sequence: 7 }.frame(&request, &mut bytes).unwrap();
        let whole = bytes.len();
        assert_eq!(whole, 24);
        bytes.extend_from_within(..);
        assert_eq!(split(&bytes).count(), 2);
        assert_eq!(split(&bytes[..whole + 20]).count(), 1);
        assert_eq!(split(&bytes[..10]).count(), 0);
        let zero = [0; 64];
        assert_eq!(split(&zero).count(), 0);
    }

    #[test]
    fn a_refusal_carries_the_number_and_the_text() {
        let mut body = (-17_i32).to_ne_bytes().to_vec();
        body.extend([0; 16]);
        body.extend([9, 0, 1, 0]);
        body.extend(b"busy\0\0\0\0");
        let failure = acknowledgement(NLM_F_ACK_TLVS | NLM_F_CAPPED, &body).unwrap_err();
        assert_eq!((failure.errno, failure.text.as_deref()), (Errno::EXIST, Some("busy")));
        assert_eq!(acknowledgement(0, &[1]).unwrap_err().errno, Errno::BADMSG);
        assert_eq!(acknowledgement(0, &0_u32.to_ne_bytes()), Ok(()));
    }
}
