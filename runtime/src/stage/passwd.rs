//! `/etc/passwd` and `/etc/group` of an image: data of a stranger, read with limits and without the C library.
//!
//! The rules are Docker's (`moby/sys/user`): a user is found by name or by number, an unknown number is taken as
//! it is, an unknown name is an error.

/// Largest id: ids travel as signed 32-bit numbers in Docker.
const ID_MAX: u32 = i32::MAX.unsigned_abs();

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id inside the container.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory, `/` when the user has none.
    pub home: String,
}

/// A name that none of the files has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// A user.
    User(String),
    /// A group.
    Group(String),
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user[:group]` and further groups against the two files.
pub fn resolve(spec: &str, further: &[String], passwd: &str, group: &str) -> Result<Identity, Unknown> {
    let (user_part, group_part) = spec.split_once(':').unwrap_or((spec, ""));
    let wanted = if user_part.is_empty() { "0" } else { user_part };
    let found = users(passwd).find(|user| user.name == wanted || number(wanted) == Some(user.uid));
    let mut identity = match (&found, number(wanted)) {
        (Some(user), _) => {
            let home = if user.home.is_empty() { "/" } else { user.home };
            Identity { uid: user.uid, gid: user.gid, groups: Vec::new(), home: home.to_owned() }
        }
        (None, Some(uid)) => Identity { uid, gid: 0, groups: Vec::new(), home: "/".to_owned() },
        (None, None) => {
            return Err(Unknown::User(wanted.to_owned()));
        }
    };
    if !group_part.is_empty() {
        identity.gid = group_id(group_part, group)?;
    } else if let Some(user) = &found {
        let member = |entry: &Group<'_>| entry.members.split(',').any(|name| name == user.name);
        identity.groups.extend(groups(group).filter(member).map(|entry| entry.gid));
    }
    for name in further {
        identity.groups.push(group_id(name, group)?);
    }
    identity.groups.sort_unstable();
    identity.groups.dedup();
    Ok(identity)
}

fn group_id(wanted: &str, group: &str) -> Result<u32, Unknown> {
    let found = groups(group).find(|entry| entry.name == wanted || number(wanted) == Some(entry.gid));
    found.map(|entry| entry.gid).or_else(|| number(wanted)).ok_or_else(|| Unknown::Group(wanted.to_owned()))
}

/// A decimal number of digits only; `+0`, `0x0` and `0day` are names, and no user has them.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|id| *id <= ID_MAX)
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or("");
        let user = User { name, uid: number(uid)?, gid: number(gid)?, home };
        (!name.is_empty()).then_some(user)
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let members = fields.next().unwrap_or("");
        let group = Group { name, gid: number(gid)?, members };
        (!name.is_empty()).then_some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        \n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        app:x:1000:1001:App,,,:/home/app:/bin/sh\n\
        nohome:x:1002:1002::\n\
        bad:x:minus:1\n\
        short:x\n\
        7:x:70:71::/seven\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nvideo:x:44:app\nbad:x:x:app\n";

    fn check(spec: &str, further: &[&str]) -> Result<(u32, u32, Vec<u32>, String), Unknown> {
        let further: Vec<String> = further.iter().map(|name| (*name).to_owned()).collect();
        let who = resolve(spec, &further, PASSWD, GROUP)?;
        Ok((who.uid, who.gid, who.groups, who.home))
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let ok = |uid, gid, groups: &[u32], home: &str| Ok((uid, gid, groups.to_vec(), home.to_owned()));
        let cases: [(&str, &[&str], Result<_, Unknown>); 14] = [
            ("", &[], ok(0, 0, &[10], "/root")),
            ("root", &[], ok(0, 0, &[10], "/root")),
            ("app", &[], ok(1000, 1001, &[10, 44], "/home/app")),
            ("1000", &[], ok(1000, 1001, &[10, 44], "/home/app")),
            ("app:video", &[], ok(1000, 44, &[], "/home/app")),
            ("app:7", &[], ok(1000, 7, &[], "/home/app")),
            ("4242", &[], ok(4242, 0, &[], "/")),
            ("4242:4243", &[], ok(4242, 4243, &[], "/")),
            (":44", &[], ok(0, 44, &[], "/root")),
            ("app:", &[], ok(1000, 1001, &[10, 44], "/home/app")),
            ("nohome", &[], ok(1002, 1002, &[], "/")),
            ("daemon", &["video", "99", "44"], ok(1, 1, &[44, 99], "/usr/sbin")),
            ("7", &[], ok(70, 71, &[], "/seven")),
            ("2147483647", &[], ok(2_147_483_647, 0, &[], "/")),
        ];
        for (spec, further, expected) in cases {
            assert_eq!(check(spec, further), expected, "{spec:?}");
        }
    }

    #[test]
    fn what_only_looks_like_a_number_is_an_unknown_name() {
        for spec in
            ["0day", "+0", "-1", "0x0", "2147483648", "4294967295", "99999999999", " 0", "bad", "short"]
        {
            assert_eq!(check(spec, &[]), Err(Unknown::User(spec.to_owned())), "{spec:?}");
        }
    }

    #[test]
    fn unknown_groups_are_refused_by_name() {
        let expected = Err(Unknown::Group("nope".to_owned()));
        assert_eq!(check("app:nope", &[]), expected);
        assert_eq!(check("app", &["nope"]), expected);
    }

    #[test]
    fn without_files_numbers_still_work() {
        assert_eq!(resolve("", &[], "", "").unwrap().uid, 0);
        assert_eq!(resolve("12:13", &[], "", "").unwrap().gid, 13);
        assert!(resolve("root", &[], "", "").is_err());
    }
}
