//! A control socket that sends and receives messages with descriptors. (In work.)
/// One end of a control socket.
pub struct Channel;
/// What a receive gave.
pub enum Received {
    /// In work
    Nothing,
}
