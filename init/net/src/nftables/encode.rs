//! Bytes of nf_tables messages: attributes, and the transaction that holds them.
//!
//! Numbers in attributes are big-endian; the netlink headers around them are in the machine's order
//! (linux/netfilter/nf_tables.h).

/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_SET_ELEMENTS: u16 = 12;
const DELETE_SET_ELEMENTS: u16 = 14;

/// Elements in one message: an attribute's length has 16 bits, and an element takes at most 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 packets the machine receives, sends and forwards.
    Inet,
    /// Frames that cross a bridge.
    Bridge,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Bridge => 7,
        }
    }
}

/// A growing list of attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    bytes: Vec<u8>,
}

impl Attributes {
    /// Appends attribute `kind` holding `value`, padded to four bytes.
    pub fn raw(&mut self, kind: u16, value: &[u8]) {
        // Nothing here is near 64 KiB: names are bounded and elements are sent in parts.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Appends a string with its closing zero.
    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.raw(kind, &bytes);
    }

    /// Appends a 32-bit number.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// Appends a 64-bit number.
    pub fn long(&mut self, kind: u16, value: u64) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// Appends an attribute made of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.raw(kind | NESTED, &inner.bytes);
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Where a chain is hooked into the packet path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainHook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `NF_INET_*` (or the bridge's) hook number.
    pub hook: u32,
    /// Order among the chains of the hook, lowest first.
    pub priority: i32,
    /// Let packets pass that no rule decides on.
    pub accept: bool,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name in the table.
    pub name: &'static str,
    /// Number by which rules and elements of the same transaction refer to it.
    pub id: u32,
    /// nft's number of the key's type: only listing tools read it.
    pub key_type: u32,
    /// Bytes of a key; the parts of a joined key are padded to four bytes each.
    pub key_bytes: u32,
    /// Type and bytes of the value, for a map.
    pub value: Option<(u32, u32)>,
    /// Keys are ends of ranges.
    pub interval: bool,
}

/// A transaction: all of it takes effect, or nothing.
#[derive(Debug, Clone)]
pub struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    labels: Vec<String>,
    family: Family,
    table: &'static str,
}

impl Batch {
    /// An empty transaction on `table` of `family`.
    pub fn new(family: Family, table: &'static str) -> Batch {
        let mut batch = Batch { bytes: Vec::new(), sequence: 0, labels: Vec::new(), family, table };
        batch.message(BATCH_BEGIN, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, &[], "begin".to_owned());
        batch
    }

    /// Goes on with another table in the same transaction.
    pub fn switch_table(&mut self, family: Family, table: &'static str) {
        self.family = family;
        self.table = table;
    }

    /// Creates the table if need be and removes its rules; chains and sets stay. Much cheaper than replacing it: the
    /// kernel waits for every processor when a chain is unhooked.
    pub fn clear_table(&mut self) {
        self.touch_table();
        self.change(DELETE_RULE, 0, "rules", |_| {});
    }

    /// Creates the table if need be. The only messages that ask for an answer are those about tables: refusals are told
    /// in any case, and thousands of answers would not fit the receive buffer.
    pub fn touch_table(&mut self) {
        self.change(NEW_TABLE, NLM_F_CREATE | NLM_F_ACK, "table", |_| {});
    }

    /// Removes the table, which need not exist.
    pub fn delete_table(&mut self) {
        self.touch_table();
        self.change(DELETE_TABLE, NLM_F_ACK, "table", |_| {});
    }

    /// Adds a chain; without a hook it is only reached by jumps.
    pub fn chain(&mut self, name: &str, hook: Option<ChainHook>) {
        self.change(NEW_CHAIN, NLM_F_CREATE, name, |message| {
            message.text(3, name);
            if let Some(hook) = hook {
                message.nest(4, |attributes| {
                    attributes.number(1, hook.hook);
                    attributes.number(2, hook.priority.cast_unsigned());
                });
                message.number(5, u32::from(hook.accept));
                message.text(7, hook.kind);
            }
        });
    }

    /// Adds a rule at the end of `chain`.
    pub fn rule(&mut self, chain: &str, rule: &super::expression::Rule) {
        self.change(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, chain, |message| {
            message.text(2, chain);
            message.nest(4, |attributes| attributes.bytes.extend(rule.as_bytes()));
        });
    }

    /// Adds a set or map.
    pub fn set(&mut self, set: &Set) {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        let flags = if set.interval { INTERVAL } else { 0 } | if set.value.is_some() { MAP } else { 0 };
        self.change(NEW_SET, NLM_F_CREATE, set.name, |message| {
            message.text(2, set.name);
            message.number(3, flags);
            message.number(4, set.key_type);
            message.number(5, set.key_bytes);
            if let Some((kind, bytes)) = set.value {
                message.number(6, kind);
                message.number(7, bytes);
            }
            message.number(10, set.id);
        });
    }

    /// Removes elements of a set or map, all of which must be there.
    pub fn remove_elements(&mut self, set: &Set, elements: &[Element]) {
        self.element_messages(DELETE_SET_ELEMENTS, 0, set, elements);
    }

    /// Removes all elements of a set.
    pub fn clear_set(&mut self, set: &Set) {
        self.change(DELETE_SET_ELEMENTS, 0, set.name, |message| message.text(2, set.name));
    }

    /// Adds elements to a set (values `None`) or map. Of an interval set each range is two elements: its first key,
    /// and the key after its last one marked as an end.
    pub fn elements(&mut self, set: &Set, elements: &[Element]) {
        self.element_messages(NEW_SET_ELEMENTS, NLM_F_CREATE, set, elements);
    }

    fn element_messages(&mut self, kind: u16, flags: u16, set: &Set, elements: &[Element]) {
        const INTERVAL_END: u32 = 1;
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.change(kind, flags, set.name, |message| {
                message.text(2, set.name);
                message.number(4, set.id);
                message.nest(3, |list| {
                    for element in part {
                        list.nest(1, |attributes| {
                            attributes.nest(1, |data| data.raw(1, &element.key));
                            if let Some(value) = &element.value {
                                attributes.nest(2, |data| data.raw(1, value));
                            }
                            if element.interval_end {
                                attributes.number(3, INTERVAL_END);
                            }
                        });
                    }
                });
            });
        }
    }

    /// The bytes to send.
    pub fn finish(mut self) -> Finished {
        self.message(BATCH_END, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, &[], "commit".to_owned());
        Finished { bytes: self.bytes, labels: self.labels }
    }

    fn change(&mut self, kind: u16, flags: u16, label: &str, fill: impl FnOnce(&mut Attributes)) {
        let mut message = Attributes::default();
        message.text(1, self.table);
        fill(&mut message);
        let kind = (NFNL_SUBSYS_NFTABLES << 8) | kind;
        let family = self.family.number();
        self.message(kind, NLM_F_REQUEST | flags, family, 0, &message.bytes, label.to_owned());
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8], label: String) {
        let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
        self.sequence += 1;
        self.labels.push(label);
    }
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The key.
    pub key: Vec<u8>,
    /// The value, in a map.
    pub value: Option<Vec<u8>>,
    /// The key is the first one behind a range.
    pub interval_end: bool,
}

/// A transaction ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub(super) bytes: Vec<u8>,
    pub(super) labels: Vec<String>,
}

impl Finished {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}
