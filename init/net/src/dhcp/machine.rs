//! The DHCP client as a state machine: no sockets, no clock, no randomness of its own.
//!
//! ```text
//!            ┌──────────────── no answer ──────────────┐
//!  Init ── discover ─► Selecting ── offer ─► Requesting ── ack ─► Bound ── T1 ─► Renewing ── T2 ─► Rebinding ─┐
//!   ▲                                            │ nak              ▲ ack ◄────────┴───────────────────┤      │
//!   │◄───────────────────────────────────────────┴── nak ───────────┼──────────────────────────────────┘      │
//!   │                                                               │                                          │
//!   └── no answer ── Rebooting (an earlier address is asked for) ── ack             lease over ◄───────────────┘
//! ```
//!
//! Times are durations since any fixed moment; they must go on while the machine sleeps.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, OptionCode};

use super::lease::Lease;
use crate::mac::Mac;

/// First wait for an answer, doubled with each question up to the last one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(64);
/// Questions for an offer or an earlier address before starting anew.
const REQUEST_TRIES: u32 = 4;
const REBOOT_TRIES: u32 = 2;
/// Shortest pause between questions while renewing (RFC 2131, section 4.4.5).
const RENEW_PAUSE: Duration = Duration::from_secs(60);
/// Pause after a refusal, so a server that refuses everything is not asked without end.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);
/// Largest answer we take, in bytes: one Ethernet frame.
const MAX_MESSAGE_BYTES: u16 = 1500;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Ethernet address of the interface.
    pub mac: Mac,
    /// Client identifier (option 61): must stay the same for the machine's life.
    pub client_id: Vec<u8>,
    /// Name told to the server.
    pub hostname: Option<String>,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send to everybody on the link, from no address.
    Broadcast(Message),
    /// Send from the address of the lease to the server.
    Unicast(Message, Ipv4Addr, Ipv4Addr),
    /// Use this lease from now on.
    Bound(Box<Lease>),
    /// The lease is over: stop using its address.
    Lost,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    Init,
    Selecting,
    Requesting { offer: Box<Lease> },
    Rebooting { address: Ipv4Addr },
    Bound { lease: Box<Lease> },
    Renewing { lease: Box<Lease> },
    Rebinding { lease: Box<Lease> },
}

/// The client of one interface.
#[derive(Debug, Clone)]
pub struct Machine {
    identity: Identity,
    state: State,
    xid: u32,
    tries: u32,
    /// When this exchange began.
    began: Duration,
    /// When the lease in use was asked for: its times count from there (RFC 2131, section 4.4.1).
    leased: Duration,
    /// When something is to be done without an answer.
    wake: Duration,
}

impl Machine {
    /// A client that asks for `earlier`, an address it had before, or for any. Its first [`Machine::tick`] is due at
    /// once. `xid` is a random number.
    pub fn new(identity: Identity, earlier: Option<Ipv4Addr>, now: Duration, xid: u32) -> Machine {
        let state = earlier.map_or(State::Init, |address| State::Rebooting { address });
        Machine { identity, state, xid, tries: 0, began: now, leased: now, wake: now }
    }

    /// When the next [`Machine::tick`] is due.
    pub fn deadline(&self) -> Duration {
        self.wake
    }

    /// True while an answer is awaited: the sockets must be open.
    pub fn is_listening(&self) -> bool {
        !matches!(self.state, State::Init | State::Bound { .. })
    }

    /// The lease in use.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound { lease } | State::Renewing { lease } | State::Rebinding { lease } => Some(lease),
            State::Init | State::Selecting | State::Requesting { .. } | State::Rebooting { .. } => None,
        }
    }

    /// The cable was out and is in again: perhaps in another network, so the address is asked for anew while it stays
    /// in use.
    pub fn carrier_returned(&mut self, now: Duration, xid: u32) -> Vec<Action> {
        match self.lease().map(|lease| lease.address.addr()) {
            Some(address) => self.enter(State::Rebooting { address }, now, xid),
            None => self.enter(State::Init, now, xid),
        }
        self.tick(now, xid)
    }

    /// The deadline is reached (or passed). `random` feeds transaction ids and the spread of repeats.
    pub fn tick(&mut self, now: Duration, random: u32) -> Vec<Action> {
        if now < self.wake {
            return Vec::new();
        }
        match self.state.clone() {
            State::Selecting => self.ask(now, random),
            State::Requesting { .. } if self.tries < REQUEST_TRIES => self.ask(now, random),
            State::Rebooting { .. } if self.tries < REBOOT_TRIES => self.ask(now, random),
            State::Init | State::Requesting { .. } | State::Rebooting { .. } => {
                self.enter(State::Selecting, now, random);
                self.ask(now, random)
            }
            State::Bound { lease } => {
                self.enter(State::Renewing { lease }, now, random);
                self.ask(now, random)
            }
            State::Renewing { lease } if now < self.leased + lease.rebind => self.ask(now, random),
            State::Renewing { lease } => {
                self.enter(State::Rebinding { lease }, now, random);
                self.ask(now, random)
            }
            State::Rebinding { lease } => match lease.valid {
                Some(valid) if now >= self.leased + valid => {
                    self.enter(State::Selecting, now, random);
                    let mut actions = vec![Action::Lost];
                    actions.extend(self.ask(now, random));
                    actions
                }
                _ => self.ask(now, random),
            },
        }
    }

    /// A message arrived at the client port. Those of other transactions and machines are ignored.
    pub fn receive(&mut self, message: &Message, now: Duration, random: u32) -> Vec<Action> {
        let ours = message.xid() == self.xid && message.chaddr().get(..6) == Some(&self.identity.mac.0[..]);
        if !ours || !self.is_listening() {
            return Vec::new();
        }
        match (self.state.clone(), message.opts().msg_type()) {
            (State::Selecting, Some(MessageType::Offer)) => match Lease::from_message(message) {
                Some(offer) => {
                    let xid = self.xid;
                    self.enter(State::Requesting { offer: Box::new(offer) }, now, xid);
                    self.ask(now, random)
                }
                None => Vec::new(),
            },
            (State::Selecting, _) => Vec::new(),
            (_, Some(MessageType::Ack)) => match Lease::from_message(message) {
                Some(lease) => self.bind(Box::new(lease)),
                None => Vec::new(),
            },
            (state, Some(MessageType::Nak)) => {
                let had = !matches!(state, State::Requesting { .. });
                self.enter(State::Init, now, random);
                self.wake = now + REFUSED_PAUSE;
                if had { vec![Action::Lost] } else { Vec::new() }
            }
            _ => Vec::new(),
        }
    }

    fn bind(&mut self, lease: Box<Lease>) -> Vec<Action> {
        self.leased = self.began;
        self.wake = self.leased + lease.renew;
        self.tries = 0;
        self.state = State::Bound { lease: lease.clone() };
        vec![Action::Bound(lease)]
    }

    fn enter(&mut self, state: State, now: Duration, xid: u32) {
        self.state = state;
        self.xid = xid;
        self.tries = 0;
        self.began = now;
        self.wake = now;
    }

    /// Sends the question of the state and sets the time of the next one.
    fn ask(&mut self, now: Duration, random: u32) -> Vec<Action> {
        self.tries += 1;
        let actions = match &self.state {
            State::Init | State::Bound { .. } => return Vec::new(),
            State::Selecting => vec![Action::Broadcast(self.discover(now))],
            State::Requesting { offer } => {
                let mut message = self.request(now);
                message.opts_mut().insert(DhcpOption::RequestedIpAddress(offer.address.addr()));
                message.opts_mut().insert(DhcpOption::ServerIdentifier(offer.server));
                vec![Action::Broadcast(message)]
            }
            State::Rebooting { address } => {
                let mut message = self.request(now);
                message.opts_mut().insert(DhcpOption::RequestedIpAddress(*address));
                vec![Action::Broadcast(message)]
            }
            State::Renewing { lease } => {
                let mut message = self.request(now);
                message.set_flags(Flags::default()).set_ciaddr(lease.address.addr());
                vec![Action::Unicast(message, lease.address.addr(), lease.server)]
            }
            State::Rebinding { lease } => {
                let mut message = self.request(now);
                message.set_ciaddr(lease.address.addr());
                vec![Action::Broadcast(message)]
            }
        };
        self.wake = self.next_question(now, random);
        actions
    }

    fn next_question(&self, now: Duration, random: u32) -> Duration {
        // Halfway to the end of the state while renewing, doubling waits otherwise; both spread by up to an eighth.
        let (wait, end) = match &self.state {
            State::Renewing { lease } => {
                let end = self.leased + lease.rebind;
                (((end.saturating_sub(now)) / 2).max(RENEW_PAUSE), Some(end))
            }
            State::Rebinding { lease } => {
                let end = lease.valid.map(|valid| self.leased + valid);
                let left = end.map_or(LONGEST_WAIT * 2, |end| end.saturating_sub(now));
                ((left / 2).max(RENEW_PAUSE), end)
            }
            _ => ((FIRST_WAIT * 2_u32.pow(self.tries.clamp(1, 7) - 1)).min(LONGEST_WAIT), None),
        };
        let next = now + wait + wait / 8 * (random % 1024) / 1024;
        end.map_or(next, |end| next.min(end))
    }

    fn discover(&self, now: Duration) -> Message {
        let mut message = self.message(now, MessageType::Discover);
        // Some servers answer to the address they offer, which no switch in between may know yet.
        if self.tries.is_multiple_of(2) {
            message.set_flags(Flags::default().set_broadcast());
        }
        message
    }

    fn request(&self, now: Duration) -> Message {
        let mut message = self.message(now, MessageType::Request);
        if self.tries.is_multiple_of(2) {
            message.set_flags(Flags::default().set_broadcast());
        }
        message
    }

    fn message(&self, now: Duration, kind: MessageType) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(self.xid, none, none, none, none, &self.identity.mac.0);
        message.set_htype(HType::Eth);
        let waited = now.saturating_sub(self.began).as_secs();
        message.set_secs(u16::try_from(waited).unwrap_or(u16::MAX));
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClientIdentifier(self.identity.client_id.clone()));
        options.insert(DhcpOption::MaxMessageSize(MAX_MESSAGE_BYTES));
        if let Some(hostname) = &self.identity.hostname {
            options.insert(DhcpOption::Hostname(hostname.clone()));
        }
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::ClasslessStaticRoute,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::DomainName,
            OptionCode::DomainSearch,
            OptionCode::InterfaceMtu,
            OptionCode::NtpServers,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
            OptionCode::Rebinding,
        ]));
        message
    }
}
