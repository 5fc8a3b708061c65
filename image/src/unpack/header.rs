//! One 512-byte tar header: checksum, format, numbers and names, read as Go's `archive/tar` reads them.
//!
//! Images are made and read by Go programs, so their reader is the arbiter of what odd headers mean.

/// Bytes of a tar block.
pub(super) const BLOCK: usize = 512;

/// A header block whose checksum is right.
#[derive(Clone, Debug)]
pub(super) struct Block(pub(super) [u8; BLOCK]);

/// Which dialect a block is in; decides what the bytes after the link name mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Nothing after the link name.
    V7,
    /// POSIX, with a name prefix.
    Ustar,
    /// Schilling's variant of it, with a shorter prefix.
    Star,
    /// GNU, with times and a sparse map.
    Gnu,
}

/// The fields every dialect has, plus device numbers and the joined name.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    pub(super) dialect: Dialect,
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: u64,
    pub(super) mtime: i64,
    pub(super) major: i64,
    pub(super) minor: i64,
}

type Refusal = &'static str;

impl Block {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Bytes `from..from + length`; empty if that is outside the block.
    pub(super) fn part(&self, from: usize, length: usize) -> &[u8] {
        self.0.get(from..from + length).unwrap_or_default()
    }

    fn dialect(&self) -> Dialect {
        match (self.part(257, 6), self.part(263, 2), self.part(508, 4)) {
            (b"ustar\0", _, b"tar\0") => Dialect::Star,
            (b"ustar\0", _, _) => Dialect::Ustar,
            (b"ustar ", b" \0", _) => Dialect::Gnu,
            _ => Dialect::V7,
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        let stored = octal(self.part(148, 8)).map_err(|_| "checksum is not a number")?;
        let bytes = || {
            self.0.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte })
        };
        let unsigned: i64 = bytes().map(i64::from).sum();
        // Some old programs summed signed characters.
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if stored == unsigned || stored == signed { Ok(()) } else { Err("checksum is wrong") }
    }

    /// Reads the fields. The name is joined with its prefix.
    pub(super) fn fields(&self) -> Result<Fields, Refusal> {
        self.check()?;
        let dialect = self.dialect();
        let size = u64::try_from(number(self.part(124, 12))?).map_err(|_| "size is negative")?;
        let mut fields = Fields {
            dialect,
            kind: self.0[156],
            name: text(self.part(0, 100)).to_vec(),
            link: text(self.part(157, 100)).to_vec(),
            mode: number(self.part(100, 8))?,
            uid: number(self.part(108, 8))?,
            gid: number(self.part(116, 8))?,
            size,
            mtime: number(self.part(136, 12))?,
            major: 0,
            minor: 0,
        };
        if dialect != Dialect::V7 {
            fields.major = number(self.part(329, 8))?;
            fields.minor = number(self.part(337, 8))?;
        }
        let prefix = match dialect {
            Dialect::V7 => &[][..],
            Dialect::Ustar => text(self.part(345, 155)),
            Dialect::Star => text(self.part(345, 131)),
            Dialect::Gnu => self.misplaced_prefix(),
        };
        if !prefix.is_empty() {
            let name = std::mem::take(&mut fields.name);
            fields.name = [prefix, b"/", &name].concat();
        }
        Ok(fields)
    }

    /// Go before 1.8 wrote a name prefix where GNU has times. If those do not read as numbers, it is one.
    fn misplaced_prefix(&self) -> &[u8] {
        let is_time = |field: &[u8]| field.first() == Some(&0) || number(field).is_ok();
        if is_time(self.part(345, 12)) && is_time(self.part(357, 12)) {
            return &[];
        }
        let prefix = text(self.part(345, 155));
        if prefix.is_ascii() { prefix } else { &[] }
    }
}

/// A field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    field.get(..end).unwrap_or_default()
}

/// A number in octal, or in base 256 when the first bit is set.
pub(super) fn number(field: &[u8]) -> Result<i64, Refusal> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Result<i64, Refusal> {
    const REFUSAL: Refusal = "number is not octal";
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    let digits = text(field.get(start..end).unwrap_or_default());
    let mut value: i64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return Err(REFUSAL);
        }
        value = value.checked_mul(8).and_then(|v| v.checked_add(i64::from(digit - b'0'))).ok_or(REFUSAL)?;
    }
    Ok(value)
}

fn base256(field: &[u8]) -> Result<i64, Refusal> {
    const REFUSAL: Refusal = "number is too large";
    let negative = field.first().is_some_and(|first| first & 0x40 != 0);
    let flip = if negative { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (at, byte) in field.iter().enumerate() {
        let byte = if at == 0 { (byte ^ flip) & 0x7f } else { byte ^ flip };
        if value >> 56 != 0 {
            return Err(REFUSAL);
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| REFUSAL)?;
    Ok(if negative { !value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_go_reads_them() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000648\0", None),
            (b"-0000644", None),
            (b"12\x003456\0", Some(0o12)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field).ok(), value, "{field:?}");
        }
    }
}
