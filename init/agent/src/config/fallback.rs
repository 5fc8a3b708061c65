//! What a machine runs by when its file is broken: the last good file, else what can be read of the broken one.
//!
//! Nobody can log in to a machine without a shell, so the API must stay within reach whatever the file says: the
//! tables that lead to it are read one by one, and lines that are complained about are left out.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use super::file::{self, Machine};

/// The last file that was accepted, on the state disk.
pub(crate) const LAST_GOOD: &str = "/var/lib/berth/machine-last-good.toml";

/// Tables that lead to the API, each read for itself.
const TABLES: [&str; 4] = ["host", "api", "network", "registries"];
/// How many lines are left out of a table at most before it is given up.
const LINES_LEFT_OUT_MAX: usize = 16;

/// Keep an accepted file: written aside, synced, renamed.
pub(crate) fn remember(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    let aside = path.with_extension("new");
    let mut file = fs::File::create(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// The last good file, when there is one and it still is.
pub(crate) fn last_good(path: &Path) -> Option<Machine> {
    file::parse(&fs::read_to_string(path).ok()?, "last good file").ok()
}

/// The tables of a broken file that can be read; defaults for the rest, and no containers.
pub(crate) fn salvage(text: &str) -> Machine {
    let mut machine = Machine::default();
    for table in TABLES {
        let Some(read) = read_leaving_out(&table_text(text, table)) else { continue };
        match table {
            "host" => machine.name = read.name,
            "api" => machine.api = read.api,
            "network" => machine.network = read.network,
            _ => machine.registries = read.registries,
        }
    }
    machine
}

/// The lines of one table and the tables below it.
fn table_text(text: &str, table: &str) -> String {
    let mut inside = false;
    let mut lines = String::from("version = 1\n");
    for line in text.lines() {
        if let Some(name) = header(line) {
            inside = name == table || name.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
        }
        if inside {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    lines
}

/// The name in a `[table]` or `[[table]]` line.
fn header(line: &str) -> Option<&str> {
    let name = line.trim().strip_prefix('[')?;
    let name = name.strip_prefix('[').unwrap_or(name);
    Some(name.split(']').next()?.trim())
}

fn read_leaving_out(text: &str) -> Option<Machine> {
    let mut lines: Vec<&str> = text.lines().collect();
    for _ in 0..=LINES_LEFT_OUT_MAX {
        match file::parse(&lines.join("\n"), "") {
            Ok(machine) => return Some(machine),
            Err(error) => {
                let at = error.line.checked_sub(1).filter(|at| *at < lines.len())?;
                lines.remove(at);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "\"\"\"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n\"\"\"";

    #[test]
    fn the_api_is_kept_when_another_table_is_broken() {
        for broken in ["[host]\nnmae = \"x\"", "[[container]]\nname = 5", "[nonsense", "= = =", "[network]\ndns = [\"x\"]"] {
            let text = format!("version = 1\n{broken}\n[api]\nlisten = \"0.0.0.0:9999\"\nclient_ca = {PEM}\n");
            assert!(file::parse(&text, "f").is_err(), "{broken}");
            let machine = salvage(&text);
            assert_eq!(machine.api.listen.port(), 9999, "{broken}");
            assert!(machine.api.client_ca.is_some(), "{broken}");
            assert!(machine.units.is_empty());
        }
    }

    #[test]
    fn a_wrong_line_inside_the_api_table_is_left_out() {
        let text = format!("version = 1\n[api]\nlisten = 7\nlitsen = \"0.0.0.0:1\"\nclient_ca = {PEM}\n");
        let machine = salvage(&text);
        assert_eq!(machine.api.listen.port(), 2376);
        assert!(machine.api.client_ca.is_some());
    }

    #[test]
    fn any_bytes_give_a_machine() {
        for text in ["", "[", "[[[[", "[api", "\u{0}", "[api]\nlisten", "[api]\n= 1\n= 2"] {
            let _ = salvage(text);
        }
    }

    #[test]
    fn the_last_good_file_is_kept_whole() {
        let directory = std::env::temp_dir().join(format!("berth-last-good-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("temporary folder");
        let path = directory.join("machine.toml");
        assert!(last_good(&path).is_none());
        remember(&path, "version = 1\n[host]\nname = \"kept\"\n").expect("written");
        assert_eq!(last_good(&path).map(|machine| machine.name).as_deref(), Some("kept"));
        remember(&path, "not toml").expect("written");
        assert!(last_good(&path).is_none(), "a broken file is not used");
        fs::remove_dir_all(&directory).expect("removed");
    }
}
