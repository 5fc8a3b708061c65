//! PAX records: `length key=value\n`, as POSIX pax and Go's `archive/tar` define them.

/// What PAX records say about the entry that follows them. Later records win.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) size: Option<u64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// The GNU sparse records of all three versions.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Offsets and lengths in turn, of versions 0.0 and 0.1.
    pub(super) map: Option<Vec<u64>>,
}

type Refusal = &'static str;

/// Extended attributes one entry may have.
pub(super) const XATTRS_MAX: usize = 1024;

impl Records {
    /// Parses the body of an `x` header.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Refusal> {
        let mut records = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes)?;
            records.take(key, value)?;
            bytes = rest;
        }
        Ok(records)
    }

    /// Checks the body of a `g` header. Programs disagree about what it applies to, so one that would change what
    /// an entry is called or how long it is is refused; comments are not.
    pub(super) fn check_global(mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            let (key, _, rest) = record(bytes)?;
            let structural =
                [&b"path"[..], b"linkpath", b"size"].contains(&key) || key.starts_with(b"GNU.sparse.");
            if structural {
                return Err("global header changes names or sizes");
            }
            bytes = rest;
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") {
            // An empty value withdraws the record; the header's own value stands.
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.link = Some(name(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"size" => self.size = Some(unsigned(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.take_xattr(attribute.to_vec(), value.to_vec(), true)?;
                } else if let Some(attribute) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    self.take_xattr(percent_decoded(attribute)?, base64_decoded(value)?, false)?;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.take(key, value)?;
                }
            }
        }
        Ok(())
    }

    fn take_xattr(&mut self, name: Vec<u8>, value: Vec<u8>, wins: bool) -> Result<(), Refusal> {
        if name.is_empty() || name.contains(&0) {
            return Err("extended attribute has no valid name");
        }
        if let Some(slot) = self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            if wins {
                slot.1 = value;
            }
            return Ok(());
        }
        if self.xattrs.len() >= XATTRS_MAX {
            return Err("too many extended attributes");
        }
        self.xattrs.push((name, value));
        Ok(())
    }
}

impl Sparse {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        match key {
            b"major" => self.major = Some(unsigned(value)?),
            b"minor" => self.minor = Some(unsigned(value)?),
            b"name" => self.name = Some(name(value)?),
            b"size" | b"realsize" => self.size = Some(unsigned(value)?),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(unsigned).collect::<Result<_, _>>()?;
                self.map = Some(numbers);
            }
            b"offset" | b"numbytes" => {
                let map = self.map.get_or_insert_with(Vec::new);
                if (map.len() % 2 == 0) != (key == b"offset") {
                    return Err("sparse map is out of order");
                }
                map.push(unsigned(value)?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Splits the first record off.
fn record(bytes: &[u8]) -> Result<(&[u8], &[u8], &[u8]), Refusal> {
    const REFUSAL: Refusal = "malformed PAX record";
    // A length of more than nine digits cannot fit into the bounded body.
    let space = bytes.iter().take(10).position(|byte| *byte == b' ').ok_or(REFUSAL)?;
    let (digits, _) = bytes.split_at(space);
    let length = usize::try_from(unsigned(digits).map_err(|_| REFUSAL)?).map_err(|_| REFUSAL)?;
    let body = bytes.get(space + 1..length).ok_or(REFUSAL)?;
    let rest = bytes.get(length..).ok_or(REFUSAL)?;
    let line = body.strip_suffix(b"\n").ok_or(REFUSAL)?;
    let equals = line.iter().position(|byte| *byte == b'=').ok_or(REFUSAL)?;
    let (key, value) = line.split_at(equals);
    if key.is_empty() || key.contains(&0) {
        return Err(REFUSAL);
    }
    Ok((key, value.get(1..).unwrap_or_default(), rest))
}

fn name(value: &[u8]) -> Result<Vec<u8>, Refusal> {
    if value.contains(&0) { Err("name has a NUL byte") } else { Ok(value.to_vec()) }
}

fn decimal(value: &[u8]) -> Result<i64, Refusal> {
    let text = std::str::from_utf8(value).map_err(|_| "PAX number is not decimal")?;
    text.parse().map_err(|_| "PAX number is not decimal")
}

/// Digits only: `+1`, ` 1` and `-0` are read differently by different programs.
pub(super) fn unsigned(value: &[u8]) -> Result<u64, Refusal> {
    const REFUSAL: Refusal = "PAX number is not decimal";
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(REFUSAL);
    }
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
    // Sizes above 2^63 are negative to Go and to the kernel.
    number.filter(|number| i64::try_from(*number).is_ok()).ok_or(REFUSAL)
}

/// `[-]seconds[.fraction]`, rounded towards the past as the kernel's pairs are.
fn time(value: &[u8]) -> Result<(i64, u32), Refusal> {
    const REFUSAL: Refusal = "PAX time is not a number";
    let text = std::str::from_utf8(value).map_err(|_| REFUSAL)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| REFUSAL)?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(REFUSAL);
    }
    let nanoseconds = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok((seconds.checked_sub(1).ok_or(REFUSAL)?, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

fn percent_decoded(text: &[u8]) -> Result<Vec<u8>, Refusal> {
    const REFUSAL: Refusal = "malformed name of an extended attribute";
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok()).ok_or(REFUSAL)?;
            decoded.push(u8::from_str_radix(digits, 16).map_err(|_| REFUSAL)?);
            rest = after.get(2..).unwrap_or_default();
        } else {
            decoded.push(*first);
            rest = after;
        }
    }
    Ok(decoded)
}

fn base64_decoded(value: &[u8]) -> Result<Vec<u8>, Refusal> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
    let decoded = STANDARD.decode(value).or_else(|_| STANDARD_NO_PAD.decode(value));
    decoded.map_err(|_| "malformed value of an extended attribute")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_split_by_their_own_length_and_nothing_else() {
        let records = Records::parse(b"29 path=a\nb=c d/\xc3\xa4 and more.\n12 uid=1000\n").unwrap();
        assert_eq!(records.path.unwrap(), b"a\nb=c d/\xc3\xa4 and more.");
        assert_eq!(records.uid, Some(1000));
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"99 a=b\n",
            b"-6 a=b\n",
            b"0 a=b\n",
            b"6 ab\n\n",
            b"5 =b\n",
            b"6 a=b\nx",
            b"9999999999 a=b\n",
            b"11 path=a\0\n",
            b"10 uid=+1\n\n",
            b"10 size=-1\n",
            b"24 size=9223372036854775808\n",
        ] {
            assert!(Records::parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times_before_1970_keep_their_fraction() {
        for (text, expected) in [
            (&b"1.5"[..], (1, 500_000_000)),
            (b"-1.5", (-2, 500_000_000)),
            (b"-1", (-1, 0)),
            (b"0.0000000019", (0, 1)),
            (b"-0.25", (-1, 750_000_000)),
        ] {
            assert_eq!(time(text), Ok(expected));
        }
    }

    #[test]
    fn global_headers_may_comment_but_not_rename() {
        assert!(Records::check_global(b"14 comment=ab\n").is_ok());
        assert!(Records::check_global(b"10 size=1\n").is_err());
        assert!(Records::check_global(b"10 path=a\n").is_err());
    }
}
