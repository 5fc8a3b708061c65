//! The one form of every error answer.

use serde::{Deserialize, Serialize};

/// `{"message": "…"}`, the body of every answer with a status of 400 or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong, in the reference engine's words where clients match on them.
    pub message: String,
}
