//! Setting the clock from a time server: one question, one answer (SNTP, RFC 5905 section 14).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

/// Port of time servers.
pub const NTP_PORT: u16 = 123;
/// Wait for the answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// An offset larger than this is stepped over; a smaller one is made up slowly, so time does not jump.
const STEP_NS: i128 = 500_000_000;

const PACKET_BYTES: usize = 48;
/// Version 4, client.
const CLIENT: u8 = 0x23;
const MODE_SERVER: u8 = 4;
/// The server's clock is not set.
const LEAP_UNKNOWN: u8 = 3;
const MAX_STRATUM: u8 = 15;
/// Seconds from 1900 to 1970.
const UNIX_EPOCH_S: u64 = 2_208_988_800;
const NS_PER_S: i128 = 1_000_000_000;

/// What one answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Nanoseconds to add to our clock.
    pub offset_ns: i128,
    /// Time of the way there and back.
    pub delay: Duration,
    /// Distance of the server from a reference clock; 1 has one.
    pub stratum: u8,
}

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The socket failed or no answer came.
    #[error("ask time server {server}")]
    Socket {
        /// The server.
        server: SocketAddr,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The server says that it does not know the time, or does not want to tell.
    #[error("time server {0} has no time to give")]
    Unsynchronised(SocketAddr),
}

/// How the clock was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adjustment {
    /// It jumped.
    Stepped,
    /// It runs faster or slower until the offset is made up.
    Slewed,
}

/// Asks one time server.
pub async fn query(server: SocketAddr) -> Result<Sample, QueryError> {
    let failed = |source| QueryError::Socket { server, source };
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    // Our time is nobody's business; a random number in its place also proves that the answer is to this question.
    let mut cookie = [0; 8];
    getrandom::fill(&mut cookie).map_err(|error| failed(error.into()))?;
    let mut question = [0; PACKET_BYTES];
    question[0] = CLIENT;
    question[40..].copy_from_slice(&cookie);
    let (sent_at, sent) = (wall_clock_ns(), Instant::now());
    socket.send(&question).await.map_err(failed)?;
    let mut answer = [0; 512];
    loop {
        let received = timeout_at(sent + ANSWER_WAIT, socket.recv(&mut answer)).await;
        let count = received.map_err(|elapsed| failed(elapsed.into()))?.map_err(failed)?;
        let round_trip = sent.elapsed();
        match evaluate(&answer[..count], cookie, sent_at, round_trip) {
            Answer::Sample(sample) => return Ok(sample),
            Answer::Unsynchronised => return Err(QueryError::Unsynchronised(server)),
            Answer::Other => {}
        }
    }
}

/// Sets the clock by a sample.
pub fn adjust(sample: &Sample) -> io::Result<Adjustment> {
    if sample.offset_ns.abs() < STEP_NS {
        let offset = Duration::from_nanos(u64::try_from(sample.offset_ns.abs()).unwrap_or_default());
        berth_sys::clock::slew(offset, sample.offset_ns < 0)?;
        return Ok(Adjustment::Slewed);
    }
    let wanted = wall_clock_ns() + sample.offset_ns;
    let out_of_range = |_| io::Error::from(io::ErrorKind::InvalidData);
    let time = Timespec {
        tv_sec: i64::try_from(wanted.div_euclid(NS_PER_S)).map_err(out_of_range)?,
        tv_nsec: i64::try_from(wanted.rem_euclid(NS_PER_S)).map_err(out_of_range)?,
    };
    clock_settime(ClockId::Realtime, time)?;
    Ok(Adjustment::Stepped)
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Sample(Sample),
    Unsynchronised,
    Other,
}

fn evaluate(answer: &[u8], cookie: [u8; 8], sent_at: i128, round_trip: Duration) -> Answer {
    let (Some(first), Some(stratum)) = (answer.first(), answer.get(1)) else { return Answer::Other };
    if answer.len() < PACKET_BYTES || first & 7 != MODE_SERVER || answer.get(24..32) != Some(&cookie[..]) {
        return Answer::Other;
    }
    let (Some(received), Some(transmitted)) = (timestamp(answer, 32), timestamp(answer, 40)) else {
        return Answer::Unsynchronised;
    };
    // Stratum 0 is a refusal ("kiss of death").
    if first >> 6 == LEAP_UNKNOWN || *stratum == 0 || *stratum > MAX_STRATUM {
        return Answer::Unsynchronised;
    }
    let round_trip_ns = i128::try_from(round_trip.as_nanos()).unwrap_or(i128::MAX);
    let arrived_at = sent_at + round_trip_ns;
    let offset_ns = i128::midpoint(received - sent_at, transmitted - arrived_at);
    let delay = u64::try_from((round_trip_ns - (transmitted - received)).max(0)).unwrap_or(u64::MAX);
    Answer::Sample(Sample { offset_ns, delay: Duration::from_nanos(delay), stratum: *stratum })
}

/// A timestamp as nanoseconds since 1970; `None` when it is not set. The 32 bits of seconds start anew in 2036.
fn timestamp(packet: &[u8], at: usize) -> Option<i128> {
    let seconds = u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?);
    let fraction = u32::from_be_bytes(packet.get(at + 4..at + 8)?.try_into().ok()?);
    if seconds == 0 && fraction == 0 {
        return None;
    }
    let era = if seconds < 1 << 31 { 1_u64 << 32 } else { 0 };
    let unix = i128::from(u64::from(seconds) + era) - i128::from(UNIX_EPOCH_S);
    Some(unix * NS_PER_S + ((i128::from(fraction) * NS_PER_S) >> 32))
}

fn wall_clock_ns() -> i128 {
    let now = clock_gettime(ClockId::Realtime);
    i128::from(now.tv_sec) * NS_PER_S + i128::from(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: [u8; 8] = *b"question";

    fn packet(received_s: u32, transmitted_s: u32) -> Vec<u8> {
        let mut bytes = vec![0; PACKET_BYTES];
        bytes[..2].copy_from_slice(&[0x24, 2]);
        bytes[24..32].copy_from_slice(&COOKIE);
        bytes[32..36].copy_from_slice(&received_s.to_be_bytes());
        bytes[40..44].copy_from_slice(&transmitted_s.to_be_bytes());
        bytes
    }

    fn judged(bytes: &[u8]) -> Answer {
        evaluate(bytes, COOKIE, 0, Duration::from_secs(2))
    }

    #[test]
    fn the_offset_is_free_of_the_time_on_the_way() {
        // Sent at 0, received 1 s later by a clock 100 s ahead, answered at once, arrived at 2.
        let zero = u32::try_from(UNIX_EPOCH_S).unwrap();
        let sample = Sample { offset_ns: 100 * NS_PER_S, delay: Duration::from_secs(2), stratum: 2 };
        assert_eq!(judged(&packet(zero + 101, zero + 101)), Answer::Sample(sample));
        // A server that took one second of the two to answer, 100 s behind.
        let sample =
            Sample { offset_ns: -100 * NS_PER_S + NS_PER_S / 2, delay: Duration::from_secs(1), stratum: 2 };
        assert_eq!(judged(&packet(zero - 99, zero - 98)), Answer::Sample(sample));
    }

    #[test]
    fn time_goes_on_after_2036() {
        let Answer::Sample(sample) = judged(&packet(5, 5)) else { panic!("no sample") };
        let seconds = sample.offset_ns / NS_PER_S;
        assert_eq!(seconds, i128::from((1_u64 << 32) - UNIX_EPOCH_S) + 4);
    }

    #[test]
    fn answers_to_others_and_servers_without_time_are_told_apart() {
        let good = packet(4_000_000_000, 4_000_000_000);
        assert!(matches!(judged(&good), Answer::Sample(_)));
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            judged(&bytes)
        };
        assert_eq!(with(24, 0), Answer::Other);
        assert_eq!(with(0, 0x23), Answer::Other);
        assert_eq!(with(0, 0xe4), Answer::Unsynchronised);
        assert_eq!(with(1, 0), Answer::Unsynchronised);
        assert_eq!(with(1, 16), Answer::Unsynchronised);
        assert_eq!(judged(&good[..47]), Answer::Other);
        assert_eq!(judged(&packet(0, 0)), Answer::Unsynchronised);
    }

    #[tokio::test]
    async fn a_server_is_asked_over_the_network() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            let (count, from) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!((count, buffer[0]), (PACKET_BYTES, CLIENT));
            let now = u32::try_from(wall_clock_ns() / NS_PER_S + i128::from(UNIX_EPOCH_S)).unwrap();
            let mut answer = packet(now + 1000, now + 1000);
            server.send_to(&answer, from).await.unwrap();
            answer[24..32].copy_from_slice(&buffer[40..48]);
            server.send_to(&answer, from).await.unwrap();
        });
        let sample = query(address).await.unwrap();
        assert!((998..=1001).contains(&(sample.offset_ns / NS_PER_S)), "{sample:?}");
    }
}
