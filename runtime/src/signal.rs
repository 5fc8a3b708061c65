//! Signal names of the Docker API and the OCI command line: `SIGTERM`, `TERM`, `15`.

/// Names without `SIG`, as Linux numbers them on x86-64 and arm64.
const NAMES: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];
/// First real-time signal a program may use (the C library keeps 32 and 33).
const RTMIN: i32 = 34;
/// Last signal.
const MAX: i32 = 64;

/// The number of a signal given by name, with or without `SIG`, in any case, or by number.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        RTMIN + offset_of(offset, '+')?
    } else if let Some(offset) = name.strip_prefix("RTMAX") {
        MAX - offset_of(offset, '-')?
    } else {
        return None;
    };
    (RTMIN..=MAX).contains(&number).then_some(number)
}

fn offset_of(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    text.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from)
}

/// The name with `SIG` of a signal number, the number itself where it has none.
pub fn name(number: i32) -> String {
    match NAMES.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => format!("SIG{name}"),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_signal_is_read() {
        let cases = [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("term", Some(15)),
            ("15", Some(15)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMAX", Some(64)),
            ("64", Some(64)),
            ("65", None),
            ("0", None),
            ("-9", None),
            ("", None),
            ("SIG", None),
            ("RTMIN+31", None),
            ("RTMAX-31", None),
            ("RTMIN-1", None),
            ("SIGNOTHING", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn names_and_numbers_agree() {
        for number in (1..=31).chain([40]) {
            assert_eq!(parse(&name(number)), Some(number));
        }
        assert_eq!(name(6), "SIGABRT");
    }
}
