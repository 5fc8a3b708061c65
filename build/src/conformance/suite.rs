//! Builds the suite's programs from a checkout, in a copy, with the Go of the machine.
//!
//! Debian 12 has Go 1.19 and the suite asks for 1.21; what it uses of that is a handful of small functions, which an
//! overlay adds. Four more changes: Go raises the limit of open files of each program, which hides what
//! `process_rlimits` looks at; the pid file's test kills a program that has ended; a test of annotations
//! runs a program that is not there; one check of `start` is upside down.

use crate::paths::Paths;
use crate::process;
use crate::progress::Step;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Go without its change of `RLIMIT_NOFILE`.
const NO_RLIMIT: &str = "package os\n";

/// `strings` of Go 1.20.
const STRINGS: &str = "package strings

func CutPrefix(s, prefix string) (after string, found bool) {
	if !HasPrefix(s, prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
";

/// `sync` of Go 1.21, for functions that do not panic.
const SYNC: &str = "package sync

func OnceValue[T any](f func() T) func() T {
	var once Once
	var result T
	return func() T {
		once.Do(func() { result = f() })
		return result
	}
}

func OnceValues[A, B any](f func() (A, B)) func() (A, B) {
	var once Once
	var a A
	var b B
	return func() (A, B) {
		once.Do(func() { a, b = f() })
		return a, b
	}
}
";

/// `slices` of Go 1.21.
const SLICES: &str = "package slices

func Contains[E comparable](s []E, v E) bool {
	for _, e := range s {
		if e == v {
			return true
		}
	}
	return false
}

func DeleteFunc[S ~[]E, E any](s S, del func(E) bool) S {
	kept := s[:0]
	for _, e := range s {
		if !del(e) {
			kept = append(kept, e)
		}
	}
	return kept
}
";

/// The root file system of the suite's containers, by the name its programs ask for.
pub(super) const ROOTFS: &str = "rootfs-amd64.tar.gz";

/// Changes of the suite's own files: path, text, replacement.
const CHANGES: &[(&str, &str, &str)] = &[
    (
        "validation/pidfile/pidfile.go",
        r#"SetProcessArgs([]string{"true"})"#,
        r#"SetProcessArgs([]string{"sleep", "30"})"#,
    ),
    (
        "validation/misc_props/misc_props.go",
        "\tannotationConfig.AddAnnotation(",
        "\tannotationConfig.SetProcessArgs([]string{\"true\"})\n\tannotationConfig.AddAnnotation(",
    ),
    // The check is called "MUST generate an error if process was not set" and passes when there is none.
    (
        "validation/start/start.go",
        "SpecErrorOK(t, err == nil, specerror.NewError(specerror.StartWithProcUnsetGenError",
        "SpecErrorOK(t, err != nil, specerror.NewError(specerror.StartWithProcUnsetGenError",
    ),
];

/// Builds every program into a folder of ours; gives the folder and the programs' names, sorted.
pub(crate) fn build(checkout: &Path, paths: &Paths, step: &Step) -> Result<(PathBuf, Vec<String>)> {
    ensure!(checkout.join("validation").is_dir(), "{} is no checkout of runtime-tools", checkout.display());
    let home = paths.output.join("conformance");
    let (source, programs) = (home.join("source"), home.join("programs"));
    for folder in [&source, &programs] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        fs::create_dir_all(folder)?;
    }
    process::run(process::command("cp").arg("-a").arg(checkout.join(".")).arg(&source), step)?;
    for (path, text, replacement) in CHANGES {
        let path = source.join(path);
        let before = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        fs::write(&path, before.replace(text, replacement))?;
    }
    let overlay = write_overlay(&home, &source)?;
    let names = names(&source)?;
    let mut command = process::command("go");
    command.current_dir(&source).env("CGO_ENABLED", "0").arg("build");
    command.args(["-mod=vendor", "-ldflags", "-s -w", "-tags", "netgo osusergo", "-overlay"]).arg(&overlay);
    command.arg("-o").arg(&programs).arg("./cmd/runtimetest");
    command.args(names.iter().map(|name| format!("./validation/{name}")));
    process::run(&mut command, step).context("building the suite")?;
    // Busybox's tar wants to be told of the compression, and the suite does not tell it.
    let packed = source.join(ROOTFS);
    process::run(process::command("gzip").args(["-d", "-f"]).arg(&packed), step)?;
    fs::copy(packed.with_extension(""), programs.join(ROOTFS))
        .with_context(|| format!("copying {ROOTFS}"))?;
    Ok((programs, names))
}

fn names(source: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(source.join("validation"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() && name != "util" {
            names.push(name);
        }
    }
    names.sort();
    if names.is_empty() {
        bail!("the suite has no programs");
    }
    Ok(names)
}

/// What Go itself lacks, where it lacks it.
fn write_overlay(home: &Path, source: &Path) -> Result<PathBuf> {
    let goroot = process::ask("go", ["env", "GOROOT"])?;
    let library = Path::new(goroot.trim()).join("src");
    let mut replace = Map::new();
    let mut add = |name: &str, place: PathBuf, text: &str| -> Result<()> {
        let file = home.join(name);
        fs::write(&file, text)?;
        replace.insert(place.display().to_string(), file.display().to_string().into());
        Ok(())
    };
    add("rlimit.go", library.join("os/rlimit.go"), NO_RLIMIT)?;
    if !library.join("slices").is_dir() {
        let strings = fs::read_to_string(library.join("strings/strings.go")).unwrap_or_default();
        if !strings.contains("func CutPrefix") {
            add("strings.go", library.join("strings/cut_prefix.go"), STRINGS)?;
        }
        add("sync.go", library.join("sync/once_values.go"), SYNC)?;
        // A vendored package: the standard library has none of this name to lay it over.
        let folder = source.join("vendor/slices");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("slices.go"), SLICES)?;
    }
    let overlay = home.join("overlay.json");
    let text = json!({ "Replace": Value::Object(replace) });
    fs::write(&overlay, serde_json::to_vec(&text)?)?;
    Ok(overlay)
}
