//! Messages to bytes and back: a tag byte, then fixed little-endian fields; every length is checked before use.
//!
//! Layout: integers as they are, texts as one length byte and the bytes, booleans and enums as one byte.
//! Descriptors travel beside the bytes; how many there must be follows from the tag. A message with a byte or a
//! descriptor too many is as wrong as one with too few, so each message has exactly one form.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::message::{Exit, FromInit, Name, PowerAction, ServiceHealth, ToInit};
use crate::{FDS_MAX, MESSAGE_MAX, SERVICE_NAME_MAX};

/// The bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a control message: {0}")]
pub struct DecodeError(pub &'static str);

/// The message breaks a limit of the protocol and cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("control message beyond its limits: {0}")]
pub struct EncodeError(pub &'static str);

/// A message as it travels.
pub(crate) struct Packet<'a> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<BorrowedFd<'a>>,
}

mod tag {
    pub(super) const HELLO: u8 = 1;
    pub(super) const REGISTER: u8 = 2;
    pub(super) const ACKNOWLEDGE: u8 = 3;
    pub(super) const STORE: u8 = 4;
    pub(super) const REMOVE: u8 = 5;
    pub(super) const ALIVE: u8 = 6;
    pub(super) const POWER: u8 = 7;
    pub(super) const STORED: u8 = 65;
    pub(super) const RUNNING: u8 = 66;
    pub(super) const EXITED: u8 = 67;
    pub(super) const SERVICE: u8 = 68;
    pub(super) const READY: u8 = 69;
    pub(super) const SHUTDOWN: u8 = 70;
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(tag: u8) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(tag);
        Self(bytes)
    }

    fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    fn raw(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    fn text(self, value: &str, limit: usize) -> Result<Self, EncodeError> {
        let length = u8::try_from(value.len()).map_err(|_| EncodeError("text too long"))?;
        if value.len() > limit {
            return Err(EncodeError("text too long"));
        }
        Ok(self.byte(length).raw(value.as_bytes()))
    }

    fn name(self, name: &Name) -> Result<Self, EncodeError> {
        self.text(name.as_str(), Name::MAX)
    }

    fn end(self, fds: Vec<BorrowedFd<'_>>) -> Result<Packet<'_>, EncodeError> {
        if self.0.len() > MESSAGE_MAX {
            return Err(EncodeError("message too long"));
        }
        if fds.len() > FDS_MAX {
            return Err(EncodeError("too many descriptors"));
        }
        Ok(Packet { bytes: self.0, fds })
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError("too short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_le_bytes)
    }

    fn text(&mut self, limit: usize) -> Result<&'a str, DecodeError> {
        let length = usize::from(self.byte()?);
        if length > limit {
            return Err(DecodeError("text too long"));
        }
        let (head, rest) = self.0.split_at_checked(length).ok_or(DecodeError("too short"))?;
        self.0 = rest;
        std::str::from_utf8(head).map_err(|_| DecodeError("text is not UTF-8"))
    }

    fn name(&mut self) -> Result<Name, DecodeError> {
        self.text(Name::MAX)?.parse().map_err(|_| DecodeError("not a name"))
    }

    /// A pid: positive, because 0 and negative numbers mean groups or everybody to the kernel.
    fn pid(&mut self) -> Result<i32, DecodeError> {
        match self.i32()? {
            pid if pid > 0 => Ok(pid),
            _ => Err(DecodeError("pid is not positive")),
        }
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError("flag is neither 0 nor 1")),
        }
    }

    fn power(&mut self) -> Result<PowerAction, DecodeError> {
        match self.byte()? {
            0 => Ok(PowerAction::Off),
            1 => Ok(PowerAction::Reboot),
            _ => Err(DecodeError("unknown power action")),
        }
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError("bytes left over")) }
    }
}

fn power_byte(action: PowerAction) -> u8 {
    match action {
        PowerAction::Off => 0,
        PowerAction::Reboot => 1,
    }
}

fn one_fd(fds: Vec<OwnedFd>) -> Result<OwnedFd, DecodeError> {
    let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| DecodeError("not exactly one descriptor"))?;
    Ok(fd)
}

fn some_fds(fds: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, DecodeError> {
    match fds.len() {
        1..=FDS_MAX => Ok(fds),
        _ => Err(DecodeError("no descriptor or too many")),
    }
}

fn no_fds(fds: &[OwnedFd]) -> Result<(), DecodeError> {
    if fds.is_empty() { Ok(()) } else { Err(DecodeError("descriptors that do not belong")) }
}

fn borrow(fds: &[OwnedFd]) -> Result<Vec<BorrowedFd<'_>>, EncodeError> {
    if fds.is_empty() {
        return Err(EncodeError("no descriptor"));
    }
    Ok(fds.iter().map(AsFd::as_fd).collect())
}

impl ToInit {
    pub(crate) fn encode(&self) -> Result<Packet<'_>, EncodeError> {
        match self {
            Self::Hello => Writer::new(tag::HELLO).end(vec![]),
            Self::Register { name, pid, pidfd } => {
                Writer::new(tag::REGISTER).name(name)?.raw(&pid.to_le_bytes()).end(vec![pidfd.as_fd()])
            }
            Self::Acknowledge { name } => Writer::new(tag::ACKNOWLEDGE).name(name)?.end(vec![]),
            Self::Store { name, fds } => Writer::new(tag::STORE).name(name)?.end(borrow(fds)?),
            Self::Remove { name } => Writer::new(tag::REMOVE).name(name)?.end(vec![]),
            Self::Alive { ready } => Writer::new(tag::ALIVE).byte(u8::from(*ready)).end(vec![]),
            Self::Power(action) => Writer::new(tag::POWER).byte(power_byte(*action)).end(vec![]),
        }
    }

    pub(crate) fn decode(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Self, DecodeError> {
        let mut reader = Reader(bytes);
        let tag = reader.byte()?;
        if !matches!(tag, tag::REGISTER | tag::STORE) {
            no_fds(&fds)?;
        }
        let message = match tag {
            tag::HELLO => Self::Hello,
            tag::REGISTER => Self::Register { name: reader.name()?, pid: reader.pid()?, pidfd: one_fd(fds)? },
            tag::ACKNOWLEDGE => Self::Acknowledge { name: reader.name()? },
            tag::STORE => Self::Store { name: reader.name()?, fds: some_fds(fds)? },
            tag::REMOVE => Self::Remove { name: reader.name()? },
            tag::ALIVE => Self::Alive { ready: reader.flag()? },
            tag::POWER => Self::Power(reader.power()?),
            _ => return Err(DecodeError("unknown tag")),
        };
        reader.end()?;
        Ok(message)
    }
}

impl FromInit {
    pub(crate) fn encode(&self) -> Result<Packet<'_>, EncodeError> {
        match self {
            Self::Stored { name, fds } => Writer::new(tag::STORED).name(name)?.end(borrow(fds)?),
            Self::Running { name, pid, pidfd } => {
                Writer::new(tag::RUNNING).name(name)?.raw(&pid.to_le_bytes()).end(vec![pidfd.as_fd()])
            }
            Self::Exited(exit) => Writer::new(tag::EXITED)
                .name(&exit.name)?
                .raw(&exit.pid.to_le_bytes())
                .raw(&exit.code.to_le_bytes())
                .raw(&exit.signal.to_le_bytes())
                .raw(&exit.at_unix_ns.to_le_bytes())
                .end(vec![]),
            Self::Service(health) => Writer::new(tag::SERVICE)
                .text(&health.service, SERVICE_NAME_MAX)?
                .raw(&health.pid.to_le_bytes())
                .raw(&health.starts.to_le_bytes())
                .end(vec![]),
            Self::Ready => Writer::new(tag::READY).end(vec![]),
            Self::Shutdown { action, deadline_s } => Writer::new(tag::SHUTDOWN)
                .byte(power_byte(*action))
                .raw(&deadline_s.to_le_bytes())
                .end(vec![]),
        }
    }

    pub(crate) fn decode(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Self, DecodeError> {
        let mut reader = Reader(bytes);
        let tag = reader.byte()?;
        if !matches!(tag, tag::STORED | tag::RUNNING) {
            no_fds(&fds)?;
        }
        let message = match tag {
            tag::STORED => Self::Stored { name: reader.name()?, fds: some_fds(fds)? },
            tag::RUNNING => Self::Running { name: reader.name()?, pid: reader.pid()?, pidfd: one_fd(fds)? },
            tag::EXITED => Self::Exited(Exit {
                name: reader.name()?,
                pid: reader.pid()?,
                code: reader.i32()?,
                signal: reader.i32()?,
                at_unix_ns: reader.i64()?,
            }),
            tag::SERVICE => Self::Service(ServiceHealth {
                service: reader.text(SERVICE_NAME_MAX)?.to_owned(),
                pid: reader.i32()?,
                starts: reader.u32()?,
            }),
            tag::READY => Self::Ready,
            tag::SHUTDOWN => Self::Shutdown { action: reader.power()?, deadline_s: reader.u32()? },
            _ => return Err(DecodeError("unknown tag")),
        };
        reader.end()?;
        Ok(message)
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
