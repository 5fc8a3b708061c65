//! Ids and names: 64 random hex digits for containers and their kin, two words for containers nobody named.

/// 64 random lower-case hex digits.
pub(crate) fn random() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(hex(&bytes))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How ids are shortened: the first 12 digits.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

const FIRST: [&str; 32] = [
    "amber", "brave", "calm", "clever", "cool", "crisp", "deep", "eager", "fair", "fast", "fresh", "gentle",
    "glad", "grand", "happy", "keen", "kind", "lively", "lucky", "merry", "neat", "nimble", "proud", "quick",
    "quiet", "ready", "sharp", "steady", "sunny", "swift", "warm", "wise",
];
const SECOND: [&str; 32] = [
    "anchor", "bay", "beacon", "bow", "breeze", "buoy", "cargo", "coast", "crane", "current", "deck", "dock",
    "ferry", "harbor", "helm", "hull", "island", "jetty", "keel", "lagoon", "lantern", "mast", "pier", "port",
    "quay", "rudder", "sail", "sextant", "shore", "tide", "wave", "wharf",
];

/// A readable name made from an id; `attempt` above 0 adds a number.
pub(crate) fn name(id: &str, attempt: u32) -> String {
    let digits = |range: std::ops::Range<usize>| {
        id.get(range).and_then(|text| usize::from_str_radix(text, 16).ok()).unwrap_or(0) % 32
    };
    let first = FIRST.get(digits(0..4)).copied().unwrap_or("amber");
    let second = SECOND.get(digits(4..8)).copied().unwrap_or("anchor");
    if attempt == 0 { format!("{first}_{second}") } else { format!("{first}_{second}{attempt}") }
}
