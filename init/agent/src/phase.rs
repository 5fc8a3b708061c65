//! What may happen to a container in which phase: pure and total.
//!
//! ```text
//!            Start          Started            Exit(no)          Start
//!  Created ────────▶ Starting ────▶ Running ─────────▶ Exited ────────▶ Starting
//!     ▲                 │            │   ▲                ▲
//!     └─ Failed(first) ─┤       Pause▼   │Thaw            │ Cancel
//!                       │           Paused                │
//!     Exited ◀─ Failed ─┘            │ Exit(again)        │
//!                                    └──────▶ Restarting ─┴─ Due, Start ─▶ Starting
//! ```
//! `Remove` leads from every phase without a process to `Removing`, which has no way out.

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Never ran.
    Created,
    /// Being started.
    Starting,
    /// Its first process runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended, to be started again.
    Restarting,
    /// Ended.
    Exited,
    /// Being removed.
    Removing,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Somebody wants it to run.
    Start,
    /// Its program runs.
    Started,
    /// It could not be started.
    Failed {
        /// It never ran before.
        first: bool,
    },
    /// Its first process ended.
    Exit {
        /// The restart policy wants it again.
        again: bool,
    },
    /// Freeze.
    Pause,
    /// Go on.
    Thaw,
    /// The wait before the next start is over.
    Due,
    /// No further start is wanted.
    Cancel,
    /// It shall go.
    Remove,
}

impl Phase {
    /// The phase after an event; none when the event is not possible in this phase.
    pub(crate) fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Created | Self::Exited | Self::Restarting, Event::Start) | (Self::Restarting, Event::Due) => {
                Some(Self::Starting)
            }
            (Self::Starting, Event::Started) | (Self::Paused, Event::Thaw) => Some(Self::Running),
            (Self::Starting, Event::Failed { first: true }) => Some(Self::Created),
            (Self::Starting, Event::Failed { first: false })
            | (Self::Running | Self::Paused, Event::Exit { again: false })
            | (Self::Restarting, Event::Cancel) => Some(Self::Exited),
            (Self::Running | Self::Paused, Event::Exit { again: true }) => Some(Self::Restarting),
            (Self::Running, Event::Pause) => Some(Self::Paused),
            (Self::Created | Self::Exited | Self::Restarting, Event::Remove) => Some(Self::Removing),
            (Self::Created, Event::Started | Event::Failed { .. } | Event::Exit { .. })
            | (Self::Created | Self::Exited, Event::Pause | Event::Thaw | Event::Due | Event::Cancel)
            | (
                Self::Starting,
                Event::Start
                | Event::Exit { .. }
                | Event::Pause
                | Event::Thaw
                | Event::Due
                | Event::Cancel
                | Event::Remove,
            )
            | (
                Self::Running,
                Event::Start
                | Event::Started
                | Event::Failed { .. }
                | Event::Thaw
                | Event::Due
                | Event::Cancel
                | Event::Remove,
            )
            | (
                Self::Paused,
                Event::Start
                | Event::Started
                | Event::Failed { .. }
                | Event::Pause
                | Event::Due
                | Event::Cancel
                | Event::Remove,
            )
            | (
                Self::Restarting,
                Event::Started | Event::Failed { .. } | Event::Exit { .. } | Event::Pause | Event::Thaw,
            )
            | (Self::Exited, Event::Started | Event::Failed { .. } | Event::Exit { .. })
            | (Self::Removing, _) => None,
        }
    }

    /// A process of the container exists or is being made.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Paused)
    }
}

#[cfg(test)]
mod tests {
    use super::Event::{Cancel, Due, Exit, Failed, Pause, Remove, Start, Started, Thaw};
    use super::Phase::{Created, Exited, Paused, Removing, Restarting, Running, Starting};
    use super::*;

    const PHASES: [Phase; 7] = [Created, Starting, Running, Paused, Restarting, Exited, Removing];
    const EVENTS: [Event; 11] = [
        Start,
        Started,
        Failed { first: true },
        Failed { first: false },
        Exit { again: true },
        Exit { again: false },
        Pause,
        Thaw,
        Due,
        Cancel,
        Remove,
    ];

    /// Rows as `PHASES`, columns as `EVENTS`.
    const TABLE: [[Option<Phase>; 11]; 7] = [
        [Some(Starting), None, None, None, None, None, None, None, None, None, Some(Removing)],
        [None, Some(Running), Some(Created), Some(Exited), None, None, None, None, None, None, None],
        [None, None, None, None, Some(Restarting), Some(Exited), Some(Paused), None, None, None, None],
        [None, None, None, None, Some(Restarting), Some(Exited), None, Some(Running), None, None, None],
        [Some(Starting), None, None, None, None, None, None, None, Some(Starting), Some(Exited), Some(Removing)],
        [Some(Starting), None, None, None, None, None, None, None, None, None, Some(Removing)],
        [None; 11],
    ];

    #[test]
    fn the_whole_table_holds() {
        for (phase, row) in PHASES.iter().zip(TABLE) {
            for (event, expected) in EVENTS.iter().zip(row) {
                assert_eq!(phase.after(*event), expected, "{phase:?} after {event:?}");
            }
        }
    }

    #[test]
    fn nothing_with_a_process_can_be_removed() {
        for phase in PHASES.into_iter().filter(|phase| phase.is_live()) {
            assert_eq!(phase.after(Remove), None);
        }
    }
}
