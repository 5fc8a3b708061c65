//! Descriptors 0 to 2: the kernel leaves them closed when the console's driver is a module, and the first file
//! opened would then be standard output.

use std::fs::File;
use std::io;

/// Standard input from nowhere, output to the console, or nowhere when there is none.
pub(crate) fn repair() {
    if let Err(error) = try_repair() {
        // Not fatal: everything of importance goes to the kernel's log.
        crate::kmsg::warn!("no standard descriptors: {error}, continuing");
    }
}

fn try_repair() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let console = File::options().write(true).open("/dev/console");
    let output = console.as_ref().unwrap_or(&null);
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(output)?;
    Ok(())
}
