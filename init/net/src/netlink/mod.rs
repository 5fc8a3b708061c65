//! Talking to the kernel over netlink: a blocking socket that sends many requests in one system call and waits for
//! every answer. The kernel works the requests off inside the call, so waiting is only reading.

mod route;
mod socket;

pub(crate) use route::{
    CREATE, EXCLUSIVE, add_address, add_route, delete_link, link_up, new_link, switch_on,
};
pub use route::{Interface, Route};
pub use socket::{Failure, Message, Request, Socket};
