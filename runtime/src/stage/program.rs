//! Finding the program inside the container and becoming it.

use std::ffi::CString;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use super::failure::failure;
use super::passwd::Identity;
use crate::plan::{Failure, Process};

/// Search path when the environment has none (Docker's).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment of the process: the plan's, and `HOME` when it says nothing about it.
pub(super) fn environment(process: &Process, who: &Identity) -> Vec<String> {
    let mut environment = process.env.clone();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={}", who.home));
    }
    environment
}

/// The path of the program, looked up as the user it will run as. Error texts are those Docker's users know.
pub(super) fn find(process: &Process, environment: &[String]) -> Result<CString, Failure> {
    let name = process.args.first().map_or("", String::as_str);
    if name.is_empty() {
        return Err(failure("exec", "no command specified", Errno::INVAL));
    }
    let found = if name.contains('/') {
        check(name).map(|()| name.to_owned()).map_err(|errno| match errno {
            Errno::NOENT => {
                failure("exec", &format!("exec: {name:?}: stat {name}: no such file or directory"), errno)
            }
            _ => failure("exec", &format!("exec: {name:?}: {}", text_of(errno)), errno),
        })?
    } else {
        search(name, environment)?
    };
    CString::new(found).map_err(|_| failure("exec", &format!("exec: {name:?}"), Errno::INVAL))
}

fn search(name: &str, environment: &[String]) -> Result<String, Failure> {
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(PATH);
    let mut denied = false;
    for dir in path.split(':').filter(|dir| dir.starts_with('/')) {
        let candidate = format!("{}/{name}", dir.trim_end_matches('/'));
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err(failure("exec", &format!("exec: {name:?}: permission denied"), Errno::ACCESS));
    }
    Err(failure("exec", &format!("exec: {name:?}: executable file not found in $PATH"), Errno::NOENT))
}

/// Whether `path` is a file the process may execute.
fn check(path: &str) -> rustix::io::Result<()> {
    let stat = rustix::fs::stat(path)?;
    match FileType::from_raw_mode(stat.st_mode) {
        // Real and effective user are the same by now, so the older of the two calls will do: filters made before
        // the newer refuse that. Where even this is filtered, execve has the word.
        FileType::RegularFile => match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()) {
            Err(Errno::PERM | Errno::NOSYS) => Ok(()),
            result => result,
        },
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::ACCESS),
    }
}

/// Runs the program in place of this process; returns only when that failed.
pub(super) fn execute(path: &CString, process: &Process, environment: &[String]) -> Failure {
    let shown = path.to_string_lossy();
    let strings = |list: &[String]| -> Result<Vec<CString>, Failure> {
        let convert = |text: &String| CString::new(text.as_str());
        let all = list.iter().map(convert).collect::<Result<_, _>>();
        all.map_err(|_| failure("exec", &format!("exec {shown}: argument with a zero byte"), Errno::INVAL))
    };
    let (args, env) = match (strings(&process.args), strings(environment)) {
        (Ok(args), Ok(env)) => (args, env),
        (Err(failure), _) | (_, Err(failure)) => return failure,
    };
    match nix::unistd::execve(path, &args, &env) {
        Ok(never) => match never {},
        Err(errno) => {
            let errno = Errno::from_raw_os_error(errno as i32);
            failure("exec", &format!("exec {shown}: {}", text_of(errno)), errno)
        }
    }
}

/// An error number in the words of Go's standard library, which Docker's messages consist of.
fn text_of(errno: Errno) -> String {
    let text = match errno {
        Errno::NOENT => "no such file or directory",
        Errno::ACCESS => "permission denied",
        Errno::PERM => "operation not permitted",
        Errno::ISDIR => "is a directory",
        Errno::NOTDIR => "not a directory",
        Errno::NOEXEC => "exec format error",
        Errno::LOOP => "too many levels of symbolic links",
        Errno::TOOBIG => "argument list too long",
        Errno::NOMEM => "cannot allocate memory",
        Errno::TXTBSY => "text file busy",
        Errno::NAMETOOLONG => "file name too long",
        other => return std::io::Error::from(other).to_string(),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Fd, Seccomp, Stdio};

    fn process(args: &[&str], env: &[&str]) -> Process {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Process {
            args: owned(args),
            env: owned(env),
            cwd: "/".to_owned(),
            user: String::new(),
            groups: Vec::new(),
            capabilities: 0,
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            rlimits: Vec::new(),
            oom_score_adj: 0,
            umask: 0o22,
            stdio: Stdio::Fds([Fd(0), Fd(1), Fd(2)]),
            special: crate::plan::ProcessSpecial::default(),
        }
    }

    fn look_up(name: &str, path: &str) -> Result<String, String> {
        let process = process(&[name], &[&format!("PATH={path}")]);
        let found = find(&process, &process.env).map_err(|failure| failure.detail)?;
        Ok(found.into_string().unwrap())
    }

    #[test]
    fn programs_are_found_in_the_containers_path() {
        assert_eq!(look_up("sh", "/nowhere:/bin/"), Ok("/bin/sh".to_owned()));
        assert_eq!(look_up("/bin/sh", ""), Ok("/bin/sh".to_owned()));
    }

    #[test]
    fn what_is_missing_is_said_in_dockers_words() {
        let cases = [
            ("nope", "/bin", r#"exec: "nope": executable file not found in $PATH"#),
            ("sh", "bin:.::", r#"exec: "sh": executable file not found in $PATH"#),
            ("/no/where", "/bin", r#"exec: "/no/where": stat /no/where: no such file or directory"#),
            ("/etc", "/bin", r#"exec: "/etc": is a directory"#),
            ("/etc/passwd", "/bin", r#"exec: "/etc/passwd": permission denied"#),
            ("passwd", "/etc", r#"exec: "passwd": permission denied"#),
            ("", "/bin", "no command specified"),
        ];
        for (name, path, expected) in cases {
            assert_eq!(look_up(name, path), Err(expected.to_owned()), "{name:?}");
        }
    }

    #[test]
    fn home_is_added_only_when_it_is_not_set() {
        let who = Identity { uid: 1, gid: 1, groups: Vec::new(), home: "/home/x".to_owned() };
        assert_eq!(environment(&process(&["a"], &["A=1"]), &who), ["A=1", "HOME=/home/x"]);
        assert_eq!(environment(&process(&["a"], &["HOME=/"]), &who), ["HOME=/"]);
    }
}
