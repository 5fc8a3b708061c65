//! Id ranges and ready-made namespaces. Each container gets 65,536 ids of its own; the host's are never among them.

use std::collections::BTreeSet;

/// Ids per container: what images expect to exist.
pub(crate) const RANGE: u32 = 65_536;
/// First host id handed out: above every id that a host or an image uses.
const FIRST: u32 = 1_000_000;
/// How many ranges there are below the last id (`u32::MAX` means "no id").
const RANGES: u32 = (u32::MAX - FIRST) / RANGE;

/// Which ranges are in use.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    used: BTreeSet<u32>,
    next: u32,
}

impl Ranges {
    /// A range that nobody uses. Goes round, so a range rests as long as possible before it is used again.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        for step in 0..RANGES {
            let index = (self.next + step) % RANGES;
            if self.used.insert(index) {
                self.next = (index + 1) % RANGES;
                return Some(FIRST + index * RANGE);
            }
        }
        None
    }

    /// Mark the range that starts at `base` as used (a container that outlived the agent).
    pub(crate) fn adopt(&mut self, base: u32) {
        if let Some(index) = index(base) {
            self.used.insert(index);
        }
    }

    /// Give a range back.
    pub(crate) fn release(&mut self, base: u32) {
        if let Some(index) = index(base) {
            self.used.remove(&index);
        }
    }
}

fn index(base: u32) -> Option<u32> {
    base.checked_sub(FIRST).map(|offset| offset / RANGE).filter(|index| *index < RANGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_nor_reach_host_ids() {
        let mut ranges = Ranges::default();
        let mut seen = BTreeSet::new();
        for _ in 0..RANGES {
            let base = ranges.allocate().expect("a free range");
            assert!(base >= FIRST && base.checked_add(RANGE).is_some());
            assert_eq!((base - FIRST) % RANGE, 0);
            assert!(seen.insert(base));
        }
        assert_eq!(ranges.allocate(), None);
        ranges.release(FIRST + 5 * RANGE);
        assert_eq!(ranges.allocate(), Some(FIRST + 5 * RANGE));
    }

    #[test]
    fn an_adopted_range_is_not_handed_out() {
        let mut ranges = Ranges::default();
        ranges.adopt(FIRST);
        assert_eq!(ranges.allocate(), Some(FIRST + RANGE));
        ranges.release(0);
    }
}
