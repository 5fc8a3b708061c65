//! Talking to the kernel over netlink: a blocking socket that sends many requests in one system call and waits for
//! every answer. The kernel works the requests off inside the call, so waiting is only reading.

mod route;
mod socket;

pub(crate) use route::{
    CREATE, EXCLUSIVE, Path, add_address, add_route, default_path, delete_address, delete_link, delete_route,
    lend_address, link_up, new_link, switch_on,
};
pub use route::{Interface, Route};
pub(crate) use socket::split;
pub use socket::{Failure, Message, Request, Socket};
