//! Paths of entries: cleaned by text alone, limited, and taken apart into parent and leaf.

/// Bytes of a whole path, the kernel's PATH_MAX.
pub(super) const PATH_MAX: usize = 4096;
/// Bytes of one component, NAME_MAX of every file system in use.
const NAME_MAX: usize = 255;
/// Directories above one another.
pub(crate) const DEPTH_MAX: usize = 256;

/// Prefix of a name that says something about layers below instead of naming a file.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs left in images of its time; it has no meaning elsewhere.
const AUFS: [&[u8]; 3] = [b".wh..wh.plnk", b".wh..wh.orph", b".wh..wh.aufs"];

/// What the path of an entry stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The layer's root directory.
    Root,
    /// A file or directory.
    Leaf {
        /// Cleaned, empty for the root.
        parent: Vec<u8>,
        /// Last component.
        name: Vec<u8>,
    },
    /// Lower layers' `name` is hidden.
    Whiteout {
        /// Cleaned, empty for the root.
        parent: Vec<u8>,
        /// Name of what is hidden.
        name: Vec<u8>,
    },
    /// All that lower layers have in `directory` is hidden.
    Opaque {
        /// Cleaned, empty for the root.
        directory: Vec<u8>,
    },
    /// Left over from aufs; to be skipped.
    Nothing,
}

/// Cleans a path: no empty and `.` components, `..` resolved by text, never above the root.
pub(super) fn clean(raw: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if raw.len() >= PATH_MAX {
        return Err("path is too long");
    }
    if raw.contains(&0) {
        return Err("path has a NUL byte");
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or("path leaves the layer")?;
            }
            part if part.len() > NAME_MAX => return Err("name is too long"),
            part => parts.push(part),
        }
    }
    if parts.len() > DEPTH_MAX { Err("path is too deep") } else { Ok(parts) }
}

/// Whether a layer takes a file of this name for a sign about the layers below.
pub(crate) fn is_whiteout_name(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT)
}

/// Classifies the path of an entry.
pub(super) fn target(raw: &[u8]) -> Result<Target, &'static str> {
    let parts = clean(raw)?;
    let Some((name, parents)) = parts.split_last() else { return Ok(Target::Root) };
    if parents.first().is_some_and(|first| AUFS.contains(first)) {
        return Ok(Target::Nothing);
    }
    if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
        return Err("whiteout has entries below it");
    }
    let parent = parents.join(&b'/');
    let Some(hidden) = name.strip_prefix(WHITEOUT) else {
        return Ok(Target::Leaf { parent, name: name.to_vec() });
    };
    if *name == OPAQUE {
        return Ok(Target::Opaque { directory: parent });
    }
    match hidden {
        b"" | b"." | b".." => Err("whiteout hides no name"),
        _ if parents.is_empty() && AUFS.contains(name) => Ok(Target::Nothing),
        _ if hidden.starts_with(WHITEOUT) => Err("unknown kind of whiteout"),
        _ => Ok(Target::Whiteout { parent, name: hidden.to_vec() }),
    }
}

/// Parent and name of a hard link's target.
pub(super) fn link_target(raw: &[u8]) -> Result<(Vec<u8>, Vec<u8>), &'static str> {
    match target(raw)? {
        Target::Leaf { parent, name } => Ok((parent, name)),
        Target::Root => Err("hard link to the root"),
        Target::Whiteout { .. } | Target::Opaque { .. } | Target::Nothing => Err("hard link to a whiteout"),
    }
}

/// Joins a parent and a name.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(parent: &str, name: &str) -> Target {
        Target::Leaf { parent: parent.into(), name: name.into() }
    }

    #[test]
    fn paths_stay_below_the_root_or_are_refused() {
        for (raw, expected) in [
            ("a", leaf("", "a")),
            ("./a/./b//c/", leaf("a/b", "c")),
            ("/etc/passwd", leaf("etc", "passwd")),
            ("//x", leaf("", "x")),
            ("a/../b", leaf("", "b")),
            (".", Target::Root),
            ("/", Target::Root),
            ("", Target::Root),
            ("a/..", Target::Root),
        ] {
            assert_eq!(target(raw.as_bytes()), Ok(expected), "{raw:?}");
        }
        let long_name = "n".repeat(256);
        let long_path = "a/".repeat(2100);
        let deep = "d/".repeat(DEPTH_MAX + 1);
        for raw in ["../x", "a/../../x", "..", "/..", "a\0b", &long_name, &long_path, &deep] {
            assert!(target(raw.as_bytes()).is_err(), "{raw:?}");
        }
        assert!(target("n".repeat(255).as_bytes()).is_ok());
        assert!(target("d/".repeat(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(target(b"\xff\xfe"), Ok(Target::Leaf { parent: vec![], name: vec![0xff, 0xfe] }));
    }

    #[test]
    fn every_form_of_whiteout_is_one_thing_or_refused() {
        let hides = |parent: &str, name: &str| Target::Whiteout { parent: parent.into(), name: name.into() };
        for (raw, expected) in [
            (".wh.a", hides("", "a")),
            ("d/.wh.a", hides("d", "a")),
            ("d/.wh.a/", hides("d", "a")),
            ("d/.wh..hidden", hides("d", ".hidden")),
            ("d/.wh....", hides("d", "...")),
            ("d/.wh..wh..opq", Target::Opaque { directory: b"d".to_vec() }),
            (".wh..wh..opq", Target::Opaque { directory: vec![] }),
            (".wh..wh.plnk", Target::Nothing),
            (".wh..wh.plnk/12.34", Target::Nothing),
            ("d/.wh", leaf("d", ".wh")),
        ] {
            assert_eq!(target(raw.as_bytes()), Ok(expected), "{raw:?}");
        }
        for raw in
            [".wh.", "d/.wh..", "d/.wh...", ".wh..wh..opqX", "d/.wh.a/b", "d/.wh..wh.x", ".wh..wh..opq/x"]
        {
            assert!(target(raw.as_bytes()).is_err(), "{raw:?}");
        }
        assert!(link_target(b".wh.a").is_err());
        assert!(link_target(b"./").is_err());
    }
}
