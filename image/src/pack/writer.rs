//! Headers of tar entries: ustar where it fits, PAX records for what does not.

use std::io::{self, Write};

/// Bytes of a tar block.
const BLOCK: usize = 512;
/// Largest number in the eight bytes of an owner.
const OWNER_MAX: u32 = 0o7_777_777;
/// Largest number in the twelve bytes of size and time.
const NUMBER_MAX: u64 = 0o77_777_777_777;
/// Bytes of the name and link fields.
const NAME_LENGTH: usize = 100;

/// All that stands before an entry's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Type flag of tar: `0` file, `1` hard link, `2` symbolic link, `3` and `4` devices, `5` directory, `6` fifo.
    pub kind: u8,
    /// Path without leading slash; a directory's ends with one.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of data that follow.
    pub size: u64,
    /// Seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Head {
    /// A head of root with no permissions, at the epoch.
    pub fn new(kind: u8, path: Vec<u8>) -> Self {
        Self { kind, path, ..Self::default() }
    }
}

/// Writes entries one after another.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// A writer of an archive that begins here.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Begins an entry.
    pub fn head(&mut self, head: &Head) -> io::Result<()> {
        let records = records(head);
        if !records.is_empty() {
            let name = b"PaxHeaders/entry".to_vec();
            let pax = Head { size: records.len() as u64, mode: 0o644, ..Head::new(b'x', name) };
            self.out.write_all(&block(&pax))?;
            self.out.write_all(&records)?;
            self.end_data(records.len() as u64)?;
        }
        self.out.write_all(&block(head))
    }

    /// Bytes of the entry's data.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// As many bytes of zero.
    pub fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        let zeros = [0; BLOCK];
        while count > 0 {
            let piece = usize::try_from(count).unwrap_or(BLOCK).min(BLOCK);
            self.out.write_all(zeros.get(..piece).unwrap_or_default())?;
            count -= piece as u64;
        }
        Ok(())
    }

    /// Ends the data of an entry that has `size` bytes.
    pub fn end_data(&mut self, size: u64) -> io::Result<()> {
        self.zeros((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.zeros(2 * BLOCK as u64)?;
        self.out.flush()
    }
}

/// PAX records for all that the header cannot tell exactly.
fn records(head: &Head) -> Vec<u8> {
    let mut all = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| all.extend(record(key, value));
    let number = |number: u64| number.to_string().into_bytes();
    if head.path.len() > NAME_LENGTH {
        add(b"path", &head.path);
    }
    if head.link.len() > NAME_LENGTH {
        add(b"linkpath", &head.link);
    }
    if head.size > NUMBER_MAX {
        add(b"size", &number(head.size));
    }
    if head.uid > OWNER_MAX {
        add(b"uid", &number(head.uid.into()));
    }
    if head.gid > OWNER_MAX {
        add(b"gid", &number(head.gid.into()));
    }
    let (seconds, nanoseconds) = head.mtime;
    if nanoseconds != 0 || u64::try_from(seconds).map_or(true, |seconds| seconds > NUMBER_MAX) {
        add(b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in &head.xattrs {
        add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    all
}

/// A time as a decimal number; the nanoseconds always count forward.
fn time(seconds: i64, nanoseconds: u32) -> String {
    const SECOND: u32 = 1_000_000_000;
    let (sign, seconds, nanoseconds) = match (seconds < 0, nanoseconds) {
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, after) => ("-", seconds.unsigned_abs() - 1, SECOND - after.min(SECOND)),
        (false, after) => ("", seconds.unsigned_abs(), after),
    };
    format!("{sign}{seconds}.{nanoseconds:09}")
}

/// `LENGTH key=value\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() > rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn block(head: &Head) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, length: usize, value: &[u8]| {
        for (slot, byte) in block.iter_mut().skip(at).take(length).zip(value) {
            *slot = *byte;
        }
    };
    put(0, NAME_LENGTH, &head.path);
    put(100, 8, format!("{:07o}\0", head.mode & 0o7777).as_bytes());
    put(108, 8, format!("{:07o}\0", head.uid.min(OWNER_MAX)).as_bytes());
    put(116, 8, format!("{:07o}\0", head.gid.min(OWNER_MAX)).as_bytes());
    put(124, 12, format!("{:011o}\0", head.size.min(NUMBER_MAX)).as_bytes());
    let seconds = u64::try_from(head.mtime.0).unwrap_or(0).min(NUMBER_MAX);
    put(136, 12, format!("{seconds:011o}\0").as_bytes());
    put(148, 8, b"        ");
    put(156, 1, &[head.kind]);
    put(157, NAME_LENGTH, &head.link);
    put(257, 8, b"ustar\x0000");
    put(329, 8, format!("{:07o}\0", head.device.0).as_bytes());
    put(337, 8, format!("{:07o}\0", head.device.1).as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    for (slot, byte) in block.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *slot = byte;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        assert_eq!(record(b"path", b"x"), b"9 path=x\n");
        // One digit more makes the record longer by one, which may take another digit.
        for length in [80, 90, 91, 92, 93, 94, 980, 990, 991, 992, 993] {
            let made = record(b"k", &vec![b'x'; length]);
            let text = String::from_utf8(made.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), made.len(), "{length}");
        }
    }

    #[test]
    fn times_before_the_epoch_count_back_from_it() {
        assert_eq!(time(5, 7), "5.000000007");
        assert_eq!(time(-1, 0), "-1.000000000");
        assert_eq!(time(-2, 750_000_000), "-1.250000000");
        assert_eq!(time(-1, 500_000_000), "-0.500000000");
    }
}
