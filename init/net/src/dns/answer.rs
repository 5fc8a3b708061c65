//! One question answered from the names its asker may see, or found to be for others. Pure.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::table::Scope;
use crate::exchange::{HEADER_BYTES, UDP_BYTES, question_end};

/// Seconds an answer may be kept: containers come and go.
const TTL_S: u32 = 2;
/// Largest answer by UDP to a question without EDNS (RFC 1035, section 4.2.1).
const PLAIN_UDP_BYTES: u16 = 512;

/// What to do with a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send this.
    Reply(Vec<u8>),
    /// Ask upstream.
    Forward,
    /// Say nothing: it is not even a question.
    Drop,
}

/// Answers `query`. `stream` says that it came by TCP, where any length fits.
pub(super) fn answer(scope: &Scope, query: &[u8], stream: bool) -> Verdict {
    let is_response = query.get(2).is_none_or(|flags| flags & 0x80 != 0);
    if query.len() < HEADER_BYTES || is_response {
        return Verdict::Drop;
    }
    if question_end(query).is_none() {
        return refuse(query, ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(query) else { return refuse(query, ResponseCode::FormErr) };
    let Some(question) = message.queries.first() else { return refuse(query, ResponseCode::FormErr) };
    if message.metadata.op_code != OpCode::Query {
        return refuse(query, ResponseCode::NotImp);
    }
    if question.query_class() != DNSClass::IN {
        return refuse(query, ResponseCode::Refused);
    }
    let records = known(scope, question, message.metadata.id);
    let code = match &records {
        Some(_) => ResponseCode::NoError,
        None if scope.internal() => ResponseCode::NXDomain,
        None => return Verdict::Forward,
    };
    let mut reply = reply_to(&message, code);
    reply.metadata.authoritative = true;
    reply.add_answers(records.unwrap_or_default());
    encode(&reply, &message, stream)
}

/// The answer "that cannot be done just now".
pub(super) fn server_failure(query: &[u8]) -> Verdict {
    refuse(query, ResponseCode::ServFail)
}

/// The records for a question about a name or address of the scope; `None` when it is about another. A name that is
/// known has an answer for every type, if an empty one: "no such name" for AAAA would hide its IPv4 address.
fn known(scope: &Scope, question: &Query, id: u16) -> Option<Vec<Record>> {
    let name = question.name();
    if question.query_type() == RecordType::PTR {
        let net = name.parse_arpa_name().ok()?;
        let whole = net.prefix_len() == net.max_prefix_len();
        let target = scope.reverse(net.addr()).filter(|_| whole)?;
        let mut target = Name::from_ascii(target).ok()?;
        target.set_fqdn(true);
        return Some(vec![Record::from_rdata(name.clone(), TTL_S, RData::PTR(PTR(target)))]);
    }
    let addresses = scope.lookup(&name.to_ascii())?;
    let wanted = |address: &&IpAddr| match question.query_type() {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    let data = |address: &IpAddr| match address {
        IpAddr::V4(address) => RData::A(A(*address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(*address)),
    };
    let mut records: Vec<Record> = addresses
        .iter()
        .filter(wanted)
        .map(|address| Record::from_rdata(name.clone(), TTL_S, data(address)))
        .collect();
    // Clients take the first address: turn by turn it is another one.
    let turns = usize::from(id) % records.len().max(1);
    records.rotate_left(turns);
    Some(records)
}

fn reply_to(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_BYTES);
        reply.set_edns(edns);
    }
    reply
}

fn encode(reply: &Message, query: &Message, stream: bool) -> Verdict {
    let room = query.edns.as_ref().map_or(PLAIN_UDP_BYTES, Edns::max_payload);
    let room = if stream { u16::MAX } else { room.clamp(PLAIN_UDP_BYTES, UDP_BYTES) };
    match reply.to_vec() {
        Ok(bytes) if bytes.len() <= usize::from(room) => Verdict::Reply(bytes),
        Ok(_) | Err(_) => reply.truncate().to_vec().map_or(Verdict::Drop, Verdict::Reply),
    }
}

/// A reply of the header alone, for questions that cannot be read or served.
fn refuse(query: &[u8], code: ResponseCode) -> Verdict {
    let Some(header) = query.get(..HEADER_BYTES) else { return Verdict::Drop };
    let question = question_end(query).and_then(|end| query.get(HEADER_BYTES..end));
    let mut reply = header.to_vec();
    reply[2] = 0x80 | (header[2] & 0x79);
    reply[3] = 0x80 | code.low();
    reply[4..].copy_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
    reply.extend(question.unwrap_or_default());
    Verdict::Reply(reply)
}
