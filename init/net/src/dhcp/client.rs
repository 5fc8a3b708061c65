//! Sockets and clock around the state machine: one task for each interface.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use berth_sys::packet;
use dhcproto::Encodable;
use dhcproto::v4::Message;
use rustix::net::{RecvFlags, recv};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::frame::{FILTER, unwrap, wrap};
use super::lease::Lease;
use super::machine::{Action, Identity, Machine};
use super::options::decode;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Bytes of the largest packet read: answers are asked to fit an Ethernet frame.
const PACKET_BYTES: usize = 2048;
/// Longest sleep: the lease counts time the machine was suspended, the timer does not.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Pause after a socket error (the interface is gone, or the kernel is out of memory).
const ERROR_PAUSE: Duration = Duration::from_secs(5);
/// DHCP messages are at least this long for old relays (RFC 1542, section 2.1).
const MIN_MESSAGE_BYTES: usize = 300;

/// News of the client of one interface.
#[derive(Debug)]
pub enum Update {
    /// Use this lease from now on.
    Bound(Box<Lease>),
    /// The lease is over.
    Lost,
    /// A socket failed; the client goes on.
    Failed(io::Error),
}

/// News of the cable of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// It is in, for the first time.
    Arrived,
    /// It was out and is in again, perhaps in another network.
    Returned,
}

/// The running client of one interface. It ends when dropped, keeping its lease.
#[derive(Debug)]
pub struct Client {
    carrier: mpsc::Sender<Carrier>,
    task: tokio::task::JoinHandle<()>,
}

impl Client {
    /// Starts a client on interface number `index`, whose news go to `updates` with that number. `earlier` is an
    /// address it had before.
    pub fn start(
        index: u32,
        identity: Identity,
        earlier: Option<Ipv4Addr>,
        updates: mpsc::Sender<(u32, Update)>,
    ) -> Client {
        let (carrier, cable) = mpsc::channel(1);
        let machine = Machine::new(identity, earlier, now(), random());
        let work = Work { index, machine, updates, packets: None, cable };
        Client { carrier, task: tokio::spawn(work.run()) }
    }

    /// Tells the client about the cable.
    pub fn carrier(&self, news: Carrier) {
        // Full means the client has yet to look at the last one.
        let _ = self.carrier.try_send(news);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Work {
    index: u32,
    machine: Machine,
    updates: mpsc::Sender<(u32, Update)>,
    packets: Option<AsyncFd<OwnedFd>>,
    cable: mpsc::Receiver<Carrier>,
}

enum Wake {
    Time,
    Packet(io::Result<Vec<u8>>),
    Carrier(Carrier),
    Ended,
}

impl Work {
    async fn run(mut self) {
        loop {
            let wake = self.wait().await;
            let actions = match wake {
                Wake::Time => self.machine.tick(now(), random()),
                Wake::Carrier(Carrier::Arrived) => self.machine.carrier_arrived(now(), random()),
                Wake::Carrier(Carrier::Returned) => self.machine.carrier_returned(now(), random()),
                Wake::Packet(Ok(packet)) => match parse(&packet) {
                    Some(message) => self.machine.receive(&message, now(), random()),
                    None => Vec::new(),
                },
                Wake::Packet(Err(error)) => {
                    self.packets = None;
                    self.failed(error).await;
                    Vec::new()
                }
                Wake::Ended => return,
            };
            for action in actions {
                self.act(action).await;
            }
            if !self.machine.is_listening() {
                self.packets = None;
            }
        }
    }

    async fn wait(&mut self) -> Wake {
        let left = self.machine.deadline().saturating_sub(now()).min(LONGEST_SLEEP);
        let packet = async {
            match &self.packets {
                Some(packets) => receive(packets).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            news = self.cable.recv() => news.map_or(Wake::Ended, Wake::Carrier),
            packet = packet => Wake::Packet(packet),
            () = sleep(left) => Wake::Time,
        }
    }

    async fn act(&mut self, action: Action) {
        let outcome = match action {
            Action::Bound(lease) => return self.tell(Update::Bound(lease)).await,
            Action::Lost => return self.tell(Update::Lost).await,
            Action::Broadcast(message) => self.broadcast(&message),
            Action::Unicast(message, from, to) => self.unicast(&message, from, to),
        };
        if let Err(error) = outcome {
            self.packets = None;
            self.failed(error).await;
        }
    }

    fn broadcast(&mut self, message: &Message) -> io::Result<()> {
        let source = message.ciaddr();
        let bytes = encode(message)?;
        let packet = wrap(source, Ipv4Addr::BROADCAST, &bytes);
        let packet = packet.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        let index = self.index;
        packet::send_ipv4(self.listen()?.as_fd(), index, [0xff; 6], &packet)
    }

    /// Renewing goes over an ordinary socket: the kernel finds the way to a server behind a router. The answer is read
    /// where all are read.
    fn unicast(&mut self, message: &Message, from: Ipv4Addr, to: Ipv4Addr) -> io::Result<()> {
        self.listen()?;
        let socket = UdpSocket::bind(SocketAddrV4::new(from, CLIENT_PORT))?;
        socket.set_nonblocking(true)?;
        socket.send_to(&encode(message)?, SocketAddrV4::new(to, SERVER_PORT))?;
        Ok(())
    }

    fn listen(&mut self) -> io::Result<&OwnedFd> {
        let packets = match self.packets.take() {
            Some(packets) => packets,
            // An OwnedFd stays open as long as it is registered, which is all the replacement asks for (unsafely).
            #[expect(deprecated)]
            None => AsyncFd::new(packet::open_ipv4(self.index, &FILTER)?)?,
        };
        Ok(self.packets.insert(packets).get_ref())
    }

    async fn failed(&self, error: io::Error) {
        self.tell(Update::Failed(error)).await;
        sleep(ERROR_PAUSE).await;
    }

    async fn tell(&self, update: Update) {
        // The receiver is gone only when the program ends.
        let _ = self.updates.send((self.index, update)).await;
    }
}

async fn receive(packets: &AsyncFd<OwnedFd>) -> io::Result<Vec<u8>> {
    loop {
        let mut ready = packets.readable().await?;
        let mut buffer = vec![0; PACKET_BYTES];
        let read = ready.try_io(|socket| {
            let (count, _) = recv(socket.get_ref(), &mut buffer[..], RecvFlags::empty())?;
            Ok(count)
        });
        if let Ok(outcome) = read {
            buffer.truncate(outcome?);
            return Ok(buffer);
        }
    }
}

fn parse(packet: &[u8]) -> Option<Message> {
    decode(unwrap(packet)?)
}

fn encode(message: &Message) -> io::Result<Vec<u8>> {
    let mut bytes = message.to_vec().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if bytes.len() < MIN_MESSAGE_BYTES {
        bytes.resize(MIN_MESSAGE_BYTES, 0);
    }
    Ok(bytes)
}

/// Time since boot, that of suspension included.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

fn random() -> u32 {
    // Without entropy the time is good enough: transaction ids are no secret, they only must differ.
    getrandom::u32().unwrap_or_else(|_| now().subsec_nanos())
}
