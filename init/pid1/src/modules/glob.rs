//! Shell patterns as module aliases use them: `*`, `?`, `[a-z]`, `[!…]`, `\` before a literal.
//!
//! Linear in pattern times text at worst: only the last star is ever retried.

/// Whether `text` as a whole matches `pattern`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text.as_bytes());
    // Where to go on when what follows the last star does not fit: one byte further in the text.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            pattern = rest;
            retry = Some((rest, text));
            continue;
        }
        if pattern.is_empty() && text.is_empty() {
            return true;
        }
        if let Some((rest, after)) = one(pattern, text) {
            (pattern, text) = (rest, after);
            continue;
        }
        let Some((star, [_, further @ ..])) = retry else { return false };
        (pattern, text) = (star, further);
        retry = Some((star, further));
    }
}

/// Matches one byte of text; what is left of both.
fn one<'p, 't>(pattern: &'p [u8], text: &'t [u8]) -> Option<(&'p [u8], &'t [u8])> {
    let [byte, after @ ..] = text else { return None };
    let rest = match pattern {
        [b'?', rest @ ..] => rest,
        [b'[', rest @ ..] => set(rest, *byte)?,
        [b'\\', literal, rest @ ..] if literal == byte => rest,
        [literal, rest @ ..] if literal == byte && *literal != b'\\' => rest,
        _ => return None,
    };
    Some((rest, after))
}

/// Matches a set after its `[`; the pattern after its `]` when `byte` is in it.
fn set(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (negated, mut pattern) = match pattern {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, pattern),
    };
    let mut found = false;
    let mut first = true;
    loop {
        pattern = match pattern {
            [b']', rest @ ..] if !first => return (found != negated).then_some(rest),
            [low, b'-', high, rest @ ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                rest
            }
            [one, rest @ ..] => {
                found |= *one == byte;
                rest
            }
            [] => return None,
        };
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_fnmatch_does() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("*b*b*", "abab", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[a-c]x", "dx", false),
            ("[!a-c]x", "dx", true),
            ("[!a-c]x", "ax", false),
            ("[]]", "]", true),
            ("[a-]", "-", true),
            ("[abc", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a\\", "a\\", false),
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00", true),
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00008086d00001041sv00001AF4sd00001100bc02sc00i00", false),
            ("usb:v*p*d*dc*dsc*dp*ic09isc*ip*in*", "usb:v1p2d3dc9dsc0dp0ic09isc00ip00in00", true),
            ("acpi*:PNP0C0C:*", "acpi:PNP0C0C:", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_exponential_time() {
        let text = "a".repeat(2000);
        let pattern = "a*".repeat(500) + "b";
        assert!(!matches(&pattern, &text));
    }
}
