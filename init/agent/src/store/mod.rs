//! Container records on disk.
//!
//! `<root>/<64 hex id>/record.json` is the record ([`record`]), beside it `log/`, `rw/{fs,work}` (the writable layer)
//! and `etc/`. Records are written aside, synced and renamed; the format number and its fixtures keep old records
//! readable.

mod files;
mod record;
mod sweep;

pub(crate) use files::{Store, StoreError, write_durably};
pub(crate) use record::{Attempt, EndpointRecord, MountKind, MountRecord, Record, RunRecord, Status};
pub(crate) use sweep::remove_tree;
