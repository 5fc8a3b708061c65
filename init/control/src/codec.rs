//! Messages to bytes and back: fixed little-endian fields, lengths checked before use. (In work.)
/// The bytes are not a message.
#[derive(Debug, thiserror::Error)]
#[error("not a control message: {0}")]
pub struct DecodeError(pub &'static str);
